"""What nobody could mean under `launch.kubernetes` is refused with its place in the file."""

import pytest

from parctl.errors import RecipeError
from parctl.recipes.loader import load_recipe

CLAIM = "{mount: /data, claim: a}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            f"kubernetes.volumes={{a: {CLAIM}, b: {{mount: /data/, empty: 1Gi}}}}",
            "has several volumes",
        ),
        (
            "kubernetes.volumes={a: {mount: /d, claim: a, sub_path: ../b}}",
            "leads out of the volume",
        ),
        ("kubernetes.volumes={a: {mount: /d, claim: a, sub_path: /b}}", 'sub_path: found "/b"'),
        (
            "kubernetes.volumes={A_b: {mount: /d, claim: a}}",
            'found the key "A_b", expected a name that',
        ),
        ("kubernetes.tolerations=[{key: a, operator: Exists, value: b}]", "asks for no value"),
        ("kubernetes.tolerations=[{value: b}]", "without a `key`"),
        ("kubernetes.tolerations=[{key: a, seconds: 5}]", "counts for NoExecute alone"),
        ("kubernetes.rdma={memory: 3}", 'found the key "memory"'),
        ("kubernetes.rdma={nvidia.com/gpu: 3}", "these are the GPUs"),
        ("kubernetes.gpu_resource=cpu", 'found "cpu"'),
        ("kubernetes.pull_secrets=[A_B]", 'found "A_B"'),
        ("kubernetes.agent_image=a b", 'found "a b"'),
        ("kubernetes.patch={Nonsense: {a: b}}", "found the key `Nonsense`, expected "),
        ("queue=Bad Queue", 'found "Bad Queue"'),
        ("image=a b", 'found "a b"'),
        ("secrets={T: {secret: A_B, key: k}}", 'found "A_B"'),
        ("secrets={T: {secret: a, key: x y}}", 'found "x y"'),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama", [f"launch.{setting}"])
    assert words in str(caught.value)


def test_the_short_name_of_a_set_will_do() -> None:
    launch = load_recipe("tiny-llama", ["launch.kubernetes.kind=lws"]).launch
    assert launch.kubernetes is not None
    assert launch.kubernetes.kind == "leaderworkerset"


def test_one_pull_secret_needs_no_list() -> None:
    launch = load_recipe("tiny-llama", ["launch.kubernetes.pull_secrets=registry"]).launch
    assert launch.kubernetes is not None
    assert launch.kubernetes.pull_secrets == ("registry",)
