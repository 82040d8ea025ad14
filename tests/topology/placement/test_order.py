"""Natural order of node names."""

from parctl.topology.placement.order import natural_key


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["n10", "n9", "n010-b2", "rack2-n1", "rack10-n1", "n10-b1", "a"]

    assert sorted(names, key=natural_key) == [
        "a",
        "n9",
        "n10",
        "n10-b1",
        "n010-b2",
        "rack2-n1",
        "rack10-n1",
    ]


def test_no_number_is_too_long() -> None:
    assert natural_key("n" + "9" * 10_000) > natural_key("n1")
