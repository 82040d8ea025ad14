"""What nobody could mean under `launch.kubernetes` is refused with its place in the file."""

import pytest

from parctl.errors import RecipeError
from parctl.recipes.loader import load_recipe

CLAIM = "{mount: /data, claim: a}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (f"volumes={{a: {CLAIM}, b: {{mount: /data/, empty: 1Gi}}}}", "has several volumes"),
        ("volumes={a: {mount: /d, claim: a, sub_path: ../b}}", "leads out of the volume"),
        ("volumes={a: {mount: /d, claim: a, sub_path: /b}}", 'sub_path: found "/b"'),
        ("volumes={A_b: {mount: /d, claim: a}}", 'found the key "A_b", expected a name that'),
        ("tolerations=[{key: a, operator: Exists, value: b}]", "asks for no value"),
        ("tolerations=[{value: b}]", "without a `key`"),
        ("tolerations=[{key: a, seconds: 5}]", "counts for NoExecute alone"),
        ("rdma={memory: 3}", 'found the key "memory"'),
        ("rdma={nvidia.com/gpu: 3}", "these are the GPUs"),
        ("gpu_resource=cpu", 'found "cpu"'),
        ("pull_secrets=[A_B]", 'found "A_B"'),
        ("agent_image=a b", 'found "a b"'),
        ("patch={Nonsense: {a: b}}", "found the key `Nonsense`, expected "),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama", [f"launch.kubernetes.{setting}"])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("queue=Bad Queue", 'found "Bad Queue"'),
        ("image=a b", 'found "a b"'),
        ("secrets={T: {secret: A_B, key: k}}", 'found "A_B"'),
        ("secrets={T: {secret: a, key: x y}}", 'found "x y"'),
    ],
)
def test_names_of_the_cluster_are_names(setting: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama", [f"launch.{setting}"])
    assert words in str(caught.value)


def test_the_short_name_of_a_set_will_do() -> None:
    launch = load_recipe("tiny-llama", ["launch.kubernetes.kind=lws"]).launch
    assert launch.kubernetes is not None
    assert launch.kubernetes.kind == "leaderworkerset"
