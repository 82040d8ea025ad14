"""Grammars over a vocabulary: what may come next, and that output of a form has it."""

import json
import re
from pathlib import Path

import pytest
import torch
from tests.runtime.inference.bpe import save_bpe

from parctl.errors import UsageError
from parctl.runtime.inference.constraints import Grammars
from parctl.runtime.inference.detokenize import FileText
from parctl.runtime.inference.grammar import compile_constraint
from parctl.runtime.inference.request import SampleRow, Sampling
from parctl.runtime.inference.sampling import BatchSampler

VOCAB = 300  # the byte tokenizer's 256, and padding of the model's table


def write(grammars: Grammars, constraint: dict[str, object], seed: int, most: int = 200) -> bytes:
    """Let a sampler write from logits of noise."""
    sampler = BatchSampler(grammars)
    noise = torch.Generator().manual_seed(seed)
    output: list[int] = []
    sampling = Sampling(temperature=1.0, seed=seed, constraint=constraint)
    while len(output) < most:
        one = SampleRow(
            request_id="r",
            sample_index=0,
            sampling=sampling,
            prompt_tokens=(65,),
            output_tokens=tuple(output),
        )
        other = SampleRow(
            request_id="s",
            sample_index=0,
            sampling=Sampling(),
            prompt_tokens=(65,),
            output_tokens=(),
        )
        logits = torch.randn(2, VOCAB, generator=noise)
        token = sampler(logits, [one, other])[0].token
        if token == 0:
            return bytes(output)
        output.append(token)
    raise AssertionError(bytes(output))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars("byte", stop_tokens=(0,))


@pytest.mark.parametrize("seed", range(5))
def test_noise_held_to_a_schema_is_of_the_schema(grammars: Grammars, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "size": {"enum": [1, 2, 30]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["name", "size", "tags"],
        "additionalProperties": False,
    }
    content = json.loads(write(grammars, {"kind": "json_schema", "schema": schema}, seed))
    assert set(content) == {"name", "size", "tags"}
    assert len(content["name"]) <= 6 and content["size"] in (1, 2, 30)
    assert all(isinstance(tag, bool) for tag in content["tags"])


def test_noise_held_to_a_pattern_or_a_choice_is_of_it(grammars: Grammars) -> None:
    found = write(grammars, {"kind": "regex", "pattern": "[a-c]{3}-[0-9]{2,4}"}, 1).decode()
    assert re.fullmatch("[a-c]{3}-[0-9]{2,4}", found)
    choice: dict[str, object] = {"kind": "choice", "texts": ["yes", "no", 'a "quoted" one']}
    chosen = {write(grammars, choice, seed).decode() for seed in range(8)}
    assert chosen <= {"yes", "no", 'a "quoted" one'} and len(chosen) > 1


def test_padding_of_the_vocabulary_is_never_allowed(grammars: Grammars) -> None:
    allowed = grammars.matcher({"kind": "regex", "pattern": "(?s:.*)"}).allowed([], VOCAB)
    assert allowed.shape == (VOCAB,)
    assert not allowed[256:].any()


def test_a_complete_output_leaves_only_the_end(grammars: Grammars) -> None:
    matcher = grammars.matcher({"kind": "choice", "texts": ["ab"]})
    assert matcher.allowed([], VOCAB).nonzero().flatten().tolist() == [97]
    assert matcher.allowed([97], VOCAB).nonzero().flatten().tolist() == [98]
    assert matcher.allowed([97], VOCAB).nonzero().flatten().tolist() == [98]  # asked again
    assert matcher.allowed([97, 98], VOCAB).nonzero().flatten().tolist() == [0]
    assert matcher.allowed([97, 98, 0], VOCAB).nonzero().flatten().tolist() == [0]


def test_tokens_of_a_file_are_held_too(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    tokenizer = FileText(tmp_path / "tokenizer.json")
    grammars = Grammars(str(tmp_path / "tokenizer.json"), stop_tokens=(1,))
    matcher = grammars.matcher({"kind": "choice", "texts": ["the cat", "the dog"]})
    written = tokenizer.encode("the dog", whole=False)
    for place, token in enumerate(written):
        allowed = matcher.allowed(written[:place], VOCAB).nonzero().flatten().tolist()
        assert token in allowed
        texts = [tokenizer.decode([*written[:place], one]) for one in allowed]
        assert all("the cat".startswith(text) or "the dog".startswith(text) for text in texts)
    assert matcher.allowed(written, VOCAB).nonzero().flatten().tolist() == [1]


def test_a_tokenizer_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    path = str(tmp_path / "tokenizer.json")
    Tokenizer(models.WordLevel({"<end>": 0, "yes": 1}, unk_token="<end>")).save(path)
    with pytest.raises(UsageError, match="cannot be held to a form"):
        compile_constraint({"kind": "choice", "texts": ["yes"]}, path, (0,))


@pytest.mark.parametrize(
    "constraint",
    [
        {"kind": "regex", "pattern": "[a"},
        {"kind": "json_schema", "schema": {"type": "frog"}},
        {"kind": "json_schema", "schema": {"$ref": "#/nowhere"}},
    ],
)
def test_what_is_no_grammar_is_refused(constraint: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="cannot be compiled"):
        compile_constraint(constraint, "byte", (0,))


def test_a_grammar_that_fails_late_ends_its_own_text_only(grammars: Grammars) -> None:
    """In the engine there is nobody to raise to: the other requests must go on."""
    assert write(grammars, {"kind": "regex", "pattern": "[a"}, 1) == b""
