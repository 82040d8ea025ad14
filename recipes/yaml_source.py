"""YAML text as a tree whose every node knows the file, line and column it came from.

PyYAML finds the tokens; the rest is ours, because a recipe is data that people write by hand: no
tags, no anchors or aliases, no duplicate keys, bounded depth and size. Scalars follow the YAML 1.2
core schema, so `no`, `1:30` and `2026-01-01` stay text and `3e-4` is a number. Faults are
collected, not raised: the reader reports them all at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from parctl.recipes.faults import Problem

MAX_BYTES = 1 << 20  # a recipe is a page of text; this bounds the time a hostile one can take
MAX_DEPTH = 20
MAX_NODES = 20_000
MAX_DIGITS = 40  # longer numbers mean a mistake, and Python refuses to convert very long ones

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NUMBER = re.compile(f"{_INTEGER.pattern}|{_FLOAT.pattern}")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", "+.inf"), float("inf")),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where something stands. Lines and columns count from 1."""

    file: str
    line: int | None
    column: int | None


@dataclass(slots=True, kw_only=True)
class Scalar:
    position: Position
    value: Any  # None, bool, int, float or str
    text: str  # as written, without quotes
    text_offset: int  # columns from `position` to the first character of `text`: 1 when quoted


@dataclass(slots=True, kw_only=True)
class Entry:
    key: Scalar
    value: "Node"


@dataclass(slots=True, kw_only=True)
class MappingNode:
    position: Position
    entries: dict[str, Entry] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SequenceNode:
    position: Position
    items: list["Node"] = field(default_factory=list)


Node = Scalar | MappingNode | SequenceNode


def to_python(node: Node) -> Any:
    """Drop the positions.

    >>> to_python(read_yaml("a: [1, x]", "f.yaml").root)
    {'a': [1, 'x']}
    """
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, SequenceNode):
        return [to_python(item) for item in node.items]
    return {key: to_python(entry.value) for key, entry in node.entries.items()}


@dataclass(slots=True, kw_only=True)
class Source:
    """What was read: the tree (None when there is none) and the faults met on the way."""

    file: str
    root: Node | None
    problems: list[Problem]


def decode(data: bytes, file: str) -> tuple[str | None, list[Problem]]:
    """Decode the bytes of a file, or say where they stop being text."""
    if len(data) > MAX_BYTES:
        message = f"the file has {len(data):,} bytes, a recipe at most {MAX_BYTES:,}"
        return None, [_problem(file, 1, 1, message, "is this the right file?")]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return None, [
            _problem(file, 1, 1, "found UTF-16 text, expected UTF-8", "save the file as UTF-8")
        ]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8-sig", "replace"))
        message = f"found byte 0x{data[error.start]:02x}, expected UTF-8 text"
        return None, [_problem(file, line, column, message, "save the file as UTF-8")]
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line, column = _place(text[: bad.start()])
        message = f"found control character U+{ord(bad.group()):04X}, expected text"
        return None, [
            _problem(file, line, column, message, "is this a binary file? a recipe is YAML text")
        ]
    return text, []


def read_yaml(text: str, file: str) -> Source:
    """Read one YAML document. Stops at the first syntax error; other faults are collected."""
    reader = _Reader(text, file)
    try:
        root = reader.read()
    except yaml.MarkedYAMLError as error:
        reader.problems.append(_syntax_problem(error, file))
        root = None
    except ValueError:  # PyYAML converts escapes such as "\\UFFFFFFFF" without looking
        line, column = reader.reached()
        message = "found an escape or number that YAML cannot hold"
        reader.problems.append(_problem(file, line, column, message, "write the character itself"))
        root = None
    except _Refused:
        root = None
    return Source(file=file, root=root, problems=reader.problems)


class _Refused(Exception):
    """Reading on would be pointless; the reason is the last problem."""


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.scanner = yaml.SafeLoader(text)
        self.file = file
        self.problems: list[Problem] = []
        self.num_nodes = 0

    def reached(self) -> tuple[int, int]:
        """Return line and column, from 1, up to which the text has been read."""
        mark = self.scanner.get_mark()
        return mark.line + 1, mark.column + 1

    def read(self) -> Node | None:
        events = iter(self.scanner.get_event, None)
        next(events)  # stream start
        first = next(events)
        if not isinstance(first, yaml.DocumentStartEvent):
            self.fault(None, "found nothing, expected a recipe", "see `parctl recipes init --help`")
            return None
        root = self.node(next(events), events, 1)
        next(events)  # document end
        following = next(events)
        if isinstance(following, yaml.DocumentStartEvent):
            self.fault(
                following,
                "found a second document, expected one recipe per file",
                "remove the line `---` or put what follows into a file of its own",
            )
        return root

    def fault(self, event: yaml.Event | None, message: str, hint: str) -> None:
        place = (
            self.position(event)
            if event is not None
            else Position(file=self.file, line=1, column=1)
        )
        self.problems.append(_problem(self.file, place.line, place.column, message, hint))

    def position(self, event: yaml.Event) -> Position:
        mark = event.start_mark
        assert mark is not None
        return Position(file=self.file, line=mark.line + 1, column=mark.column + 1)

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Node:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            self.fault(event, f"found more than {MAX_NODES:,} values", "is this the right file?")
            raise _Refused
        if depth > MAX_DEPTH:
            self.fault(event, f"nested deeper than {MAX_DEPTH} levels", "a recipe needs three")
            raise _Refused
        if isinstance(event, yaml.AliasEvent):
            self.fault(event, f"found the alias `*{event.anchor}`", "write the value out")
            return Scalar(position=self.position(event), value=None, text="", text_offset=0)
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            self.fault(
                event,
                f"found the anchor `&{event.anchor}`",
                "recipes have no anchors: remove it and write values out",
            )
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            self.fault(event, f"found the tag `{tag}`", "recipes have no tags: remove it")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(event, events, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            sequence = SequenceNode(position=self.position(event))
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                sequence.items.append(self.node(event, events, depth + 1))
            return sequence
        assert isinstance(event, yaml.ScalarEvent)
        return self.scalar(event)

    def mapping(
        self, start: yaml.MappingStartEvent, events: Iterator[yaml.Event], depth: int
    ) -> MappingNode:
        mapping = MappingNode(position=self.position(start))
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self.node(event, events, depth + 1)
            value = self.node(next(events), events, depth + 1)
            if not isinstance(key, Scalar):
                self.fault(event, "found a list or mapping as a key, expected a name", "quote it")
                continue
            first = mapping.entries.get(key.text)
            if first is None:
                mapping.entries[key.text] = Entry(key=key, value=value)
            else:
                self.fault(
                    event,
                    f"key `{key.text}` is given twice, first in line {first.key.position.line}",
                    "keep one of the two",
                )
        return mapping

    def scalar(self, event: yaml.ScalarEvent) -> Scalar:
        value: Any = event.value
        if any("\ud800" <= letter <= "\udfff" for letter in event.value):
            self.fault(event, "found half of a surrogate pair", "write the character itself")
            return Scalar(position=self.position(event), value=None, text="", text_offset=0)
        if event.style is None and event.tag is None:
            if len(event.value) > MAX_DIGITS and _NUMBER.fullmatch(event.value):
                self.fault(
                    event,
                    f"found a number of {len(event.value)} digits",
                    "quote it if it is meant as text",
                )
                value = None
            else:
                value = _resolve(event.value)
        return Scalar(
            position=self.position(event),
            value=value,
            text=event.value,
            text_offset=1 if event.style in ("'", '"') else 0,
        )


def _resolve(text: str) -> Any:
    """Resolve a plain scalar by the YAML 1.2 core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _syntax_problem(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    message = error.problem or error.context or "not YAML"
    if "'\\t'" in message:
        return _problem(file, line, column, "found a tab", "indent with spaces")
    if "mapping values are not allowed" in message:
        hint = "is the indentation right? quote a text that holds `: `"
    elif "expected <block end>" in message:
        hint = "is the indentation of this line the same as that of its neighbours?"
    elif any(words in message for words in ("node content", "end of stream", "stream end")):
        hint = "close every bracket and quote"
    else:
        hint = "quote the text if it is meant literally"
    context = f"{error.context}: " if error.context and error.context != message else ""
    return _problem(file, line, column, f"not YAML: {context}{message}", hint)


def _place(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of what follows `before`."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _problem(file: str, line: int | None, column: int | None, message: str, hint: str) -> Problem:
    return Problem(file=file, line=line, column=column, path="", message=message, hint=hint)
