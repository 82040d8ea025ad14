"""Slurm's lists of names."""

import pytest

from parctl.errors import UsageError
from parctl.topology.hostlist import expand_hostlist


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[1,3-4]-ib,x", ["n1-ib", "n3-ib", "n4-ib", "x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("[1101-1102]", ["1101", "1102"]),
        ("a, b", ["a", "b"]),
    ],
)
def test_lists(text: str, names: list[str]) -> None:
    assert expand_hostlist(text, "f") == names


@pytest.mark.parametrize(
    "text", ["n[", "n]", "n[[1]]", "n[a]", "n[]", "n[3-1]", "n[1-9999999]", "n[1-2000]m[1-2000]"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^f:"):
        expand_hostlist(text, "f")
