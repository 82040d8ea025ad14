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


def test_padded_and_plain_numbers_have_one_order() -> None:
    names = ["tux10", "tux08", "tux6", "tux06", "tux007", "tux0", "tux"]
    expected = ["tux", "tux0", "tux06", "tux6", "tux007", "tux08", "tux10"]

    # from whatever order the names come: `tux6` and `tux06` are one number but two nodes
    assert sorted(names, key=natural_key) == expected
    assert sorted(reversed(names), key=natural_key) == expected
    assert natural_key("n1") != natural_key("n01")
