"""JSON and YAML from outside: cut, hostile, or several values in one text."""

import time

import pytest

from parctl.errors import UsageError
from parctl.topology.document import read_documents


def test_several_json_values_in_one_text() -> None:
    assert read_documents('{"a": 1}\n{"b": 2}\n', "f").values == ({"a": 1}, {"b": 2})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"items": [{"a": 1}, {"b": [2]}, {"c": "x', {"items": [{"a": 1}, {"b": [2]}]}),
        ('[{"a": "}]"}, {"b"', [{"a": "}]"}]),
        ('{"x": [], "y": [{"a": 1},', {"x": [], "y": [{"a": 1}]}),
    ],
)
def test_cut_json_gives_its_whole_items(text: str, value: object) -> None:
    found = read_documents(text, "f")

    assert found.values == (value,)
    assert found.cut == "the end of f: cut in the middle, what is whole before it is read"


def test_cut_yaml_loses_its_last_line() -> None:
    found = read_documents("a: 1\nb:\n- x\n- y: 'z", "f")

    assert found.values == ({"a": 1, "b": ["x"]},)
    assert found.cut == "the end of f: cut in line 4, what is before it is read"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [1,}', "f:1:10: not JSON: Expecting value"),
        ('{"a": nope}', "f:1:7: not JSON: Expecting value"),
        ('{"a": ' + "9" * 5000 + "}", "f: not JSON: a number is too long"),
        ("a: 1\n b: 2\nc: 3\nd: 4\n", "f:2: not YAML: mapping values are not allowed"),
        ("a: !!python/object/apply:os.system [ls]\nb: 1\nc: 2\n", "f:1: not YAML: could not"),
        ("a: &x {b: 1}\nc:\n  <<: *x\nd: 1\n", "f:3: not YAML: merge keys"),
        ("a: \x01\n", "f: not YAML"),
    ],
)
def test_wrong_texts_say_where(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_documents(text, "f")

    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"a":' * 10**5, "- " * 10**5, "a: " + "[" * 10**5, "? " * 10**5],
    ids=["json list", "json object", "yaml list", "yaml flow", "yaml key"],
)
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(UsageError, match=r"nested too deep|not YAML"):
        read_documents(text, "f")

    assert time.process_time() - begin < 5


@pytest.mark.parametrize("text", ['{"' + '\\"' * 10**5, '"' * 10**5, '{"a": "' + "x" * 10**6])
def test_strings_without_an_end_take_no_time(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(UsageError):
        read_documents(text, "f")

    assert time.process_time() - begin < 5


def test_aliases_cost_no_memory() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]

    assert len(read_documents("\n".join(lines), "f").values[0]) == 30
