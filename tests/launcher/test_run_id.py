"""Run ids are DNS labels, and a person may give the beginning of one."""

import re

import pytest

from parctl.errors import UnknownRunError, UsageError
from parctl.launcher.run_id import check_run_id, match_run_id, new_run_id


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("tiny-llama", "tiny-llama-"),
        ("LLaMA 70B (test)", "llama-70b-test-"),
        ("70b", "run-70b-"),
        ("", "run-"),
        ("a" * 60, "a" * 33 + "-"),
        ("a" * 32 + "-b", "a" * 32 + "-"),
    ],
)
def test_a_new_id_is_a_label_of_at_most_40_characters(name: str, beginning: str) -> None:
    run_id = new_run_id(name)

    assert re.fullmatch(re.escape(beginning) + "[a-z0-9]{6}", run_id)
    assert len(run_id) <= 40
    assert check_run_id(run_id) == run_id


def test_new_ids_differ() -> None:
    assert len({new_run_id("a") for _ in range(100)}) == 100


@pytest.mark.parametrize("run_id", ["", "A", "1a", "a-", "-a", "a_b", "a.b", "../a", "a b", "a\n"])
def test_what_is_no_label_is_refused(run_id: str) -> None:
    with pytest.raises(UsageError, match="is not a DNS label"):
        check_run_id(run_id)


def test_41_characters_are_too_many() -> None:
    assert check_run_id("a" * 40)
    with pytest.raises(UsageError, match="has 41 characters, 40 are allowed"):
        check_run_id("a" * 41)


def test_a_beginning_is_enough_when_it_is_of_one_run() -> None:
    known = ["llama-aaaaaa", "llama-bbbbbb", "gpt-cccccc", "gpt"]
    assert match_run_id("llama-a", known) == "llama-aaaaaa"
    assert match_run_id("gpt", known) == "gpt"  # in full wins over being a beginning
    with pytest.raises(UnknownRunError, match="beginning of 2 runs: llama-aaaaaa, llama-bbbbbb"):
        match_run_id("llama", known)


def test_an_unknown_run_names_the_nearest() -> None:
    with pytest.raises(UnknownRunError) as unknown:
        match_run_id("lama-aaaaaa", ["llama-aaaaaa", "gpt-cccccc"])
    assert unknown.value.hint == "did you mean `llama-aaaaaa`?"
    with pytest.raises(UnknownRunError) as unknown:
        match_run_id("", ["llama-aaaaaa"])
    assert unknown.value.hint == "`parctl list` shows the runs"
