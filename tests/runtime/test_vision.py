"""A vision transformer: its arithmetic by hand, its images, its splits against one process."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime import reference
from tests.runtime.harness import train_to_end
from tests.runtime.plans import GPT, TRAIN, plan

from parctl.errors import NotBuiltError, UsageError
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import num_parameters
from parctl.recipes.spec import DataSpec, VisionSpec
from parctl.runtime.data.check import refuse_bad_data
from parctl.runtime.data.images import ImageStream, stripes
from parctl.runtime.model.initialize import fill
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.supported import refuse_unbuilt

VISION = VisionSpec(image_size=8, patch_size=4, num_channels=3, num_classes=5)
VIT = replace(
    GPT,
    family="vit",
    vocab_size=0,
    max_seq_len=5,
    causal=False,
    tied_embeddings=False,
    vision=VISION,
)
STRIPES = "corpus://stripes"


def test_the_model_has_as_many_parameters_as_its_shape_says() -> None:
    for model in (VIT, load_recipe("tiny-vit: DP").model):
        assert model is not None
        with torch.device("meta"):
            built = Transformer(model)
        assert sum(weight.numel() for weight in built.parameters()) == num_parameters(model)


def test_logits_equal_a_second_writing() -> None:
    """Patches cut by hand, attention to all, the head on the class token."""
    module = Transformer(VIT).double()
    w = dict(module.named_parameters())
    fill(w, num_layers=2, seed=3)
    with torch.no_grad():
        for name, weight in w.items():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    patches = [
        images[:, :, row : row + 4, column : column + 4].reshape(2, 48)
        for row in (0, 4)
        for column in (0, 4)
    ]
    embedded = [patch @ w["embedding.weight"].T + w["embedding.bias"] for patch in patches]
    first = w["embedding.class_token"].expand(2, -1)
    x = torch.stack([first, *embedded], dim=1) + w["positions.weight"]
    for layer in range(2):
        block = f"blocks.{layer}"
        h = reference.norm(w, VIT, f"{block}.attention_norm", x)
        heads = []
        q, k, v = (
            reference.linear(w, f"{block}.attention.{part}", h) for part in ("wq", "wk", "wv")
        )
        for head in range(4):
            own = slice(8 * head, 8 * head + 8)
            scores = q[..., own] @ k[..., own].mT / math.sqrt(8)
            heads.append(scores.softmax(dim=-1) @ v[..., own])
        x = x + reference.linear(w, f"{block}.attention.wo", torch.cat(heads, dim=-1))
        h = reference.norm(w, VIT, f"{block}.feed_forward_norm", x)
        up = reference.linear(w, f"{block}.feed_forward.w_up", h)
        up = 0.5 * up * (1 + torch.tanh((2 / math.pi) ** 0.5 * (up + 0.044715 * up**3)))
        x = x + reference.linear(w, f"{block}.feed_forward.w_down", up)
    expected = reference.linear(w, "head", reference.norm(w, VIT, "final_norm", x)[:, 0])
    torch.testing.assert_close(module(images), expected, rtol=1e-11, atol=1e-12)


FORMS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "dp2": ({"dp": 2}, {}),
    "fsdp2, full recompute": ({"fsdp": 2}, {"recompute": "full"}),
    "tp2": ({"tp": 2}, {}),
    "tp2 x fsdp2": ({"fsdp": 2, "tp": 2}, {}),
    "pp2": ({"pp": 2}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_split_equals_one_process(form: str, tmp_path: Path) -> None:
    axes, train = FORMS[form]
    common = {"seq_len": 5, "validate_every": 2}
    one = train_to_end(plan(STRIPES, {}, model=VIT, train=common), tmp_path / "one")
    made = plan(STRIPES, axes, model=VIT, train={**common, **train})
    for ours, theirs in zip(train_to_end(made, tmp_path / "split"), one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-10)
        if ours["step"] == 4:
            assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-10)


def test_it_learns_to_tell_stripes_apart(tmp_path: Path) -> None:
    """An untrained model is at ln 5 = 1.61."""
    train = {"seq_len": 5, "steps": 60, "precision": "fp32", "global_batch": 32, "micro_batch": 32}
    metrics = train_to_end(plan(STRIPES, {}, model=VIT, train=train), tmp_path)
    assert metrics[0]["loss"] == pytest.approx(math.log(5), abs=0.1)
    assert metrics[-1]["loss"] < 0.8


def write_images(path: Path, labels: list[int]) -> Path:
    records = [[label, *[label * 10] * 192] for label in labels]
    path.write_bytes(np.array(records, dtype=np.uint8).tobytes())
    return path


def test_files_hold_records_of_a_class_and_pixels(tmp_path: Path) -> None:
    first = write_images(tmp_path / "1.bin", [4, 0])
    second = write_images(tmp_path / "2.bin", [3])
    images = ImageStream([str(first), str(second)], VISION)
    assert len(images) == 3
    assert images.read(2).tolist() == [3] + [30] * 192
    begin, end = images.split(2)
    assert (len(begin), len(end)) == (2, 1)
    assert end.read(0)[0] == 3


def test_a_class_that_the_model_does_not_have_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write_images(tmp_path / "images.bin", [4, 9])
    with pytest.raises(UsageError, match=r"images.bin: record 1 is of class 9, but .* is 5"):
        ImageStream([str(path)], VISION).read(1)


def test_stripes_follow_from_their_index() -> None:
    assert np.array_equal(stripes(7, VISION), stripes(7, VISION))
    labels = [int(stripes(index, VISION)[0]) for index in range(100)]
    assert set(labels) == set(range(5))
    assert stripes(7, VISION).shape == (193,)


def refusal(train: str) -> str:
    data: DataSpec | None = plan(train, {}).recipe.data
    assert data is not None
    with pytest.raises(UsageError) as caught:
        refuse_bad_data(data, VIT)
    return caught.value.message


def test_data_that_are_no_images_are_refused_before_any_process_starts(tmp_path: Path) -> None:
    path = tmp_path / "images.bin"
    path.write_bytes(bytes(200))
    assert "200 bytes is no multiple of 193 = 1 + 3 x 8 x 8" in refusal(str(path))
    assert "a vit reads images" in refusal("corpus://guide")
    data = plan(STRIPES, {}).recipe.data
    assert data is not None
    with pytest.raises(UsageError, match="are images, and test-gpt reads text"):
        refuse_bad_data(data, GPT)


def test_patches_are_not_split_by_sequence_or_context_parallelism() -> None:
    recipe = plan(STRIPES, {"tp": 2}, model=VIT, train={"seq_len": 5}).recipe
    refuse_unbuilt(recipe, {"tp": 2})
    with pytest.raises(NotBuiltError, match="CP of an image's patches"):
        refuse_unbuilt(recipe, {"cp": 2})
    long = replace(recipe, train=replace(TRAIN, seq_len=16))
    with pytest.raises(UsageError, match="but an image has 5 tokens"):
        refuse_unbuilt(long, {"tp": 2})


def test_a_recipe_without_data_trains_on_stripes() -> None:
    recipe = load_recipe("tiny-vit: DP2")
    assert recipe.data is not None and recipe.train is not None
    assert recipe.data.train == (STRIPES,)
    assert recipe.train.seq_len == 65
