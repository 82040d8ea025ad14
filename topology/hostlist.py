"""Lists of names as Slurm writes them: `node[0001-0009,0012],login`, also with several brackets.

Zeros in front are kept: `node[08-11]` is node08 to node11.
"""

import re
from collections.abc import Iterator

from parctl.errors import UsageError

MAX_NAMES = 2**20
_PART = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


def expand_hostlist(text: str, where: str) -> list[str]:
    """List the names. Raises UsageError that begins with `where`.

    >>> expand_hostlist("a[08-10],b", "f"), expand_hostlist("r[1-2]n[1-2]", "f")
    (['a08', 'a09', 'a10', 'b'], ['r1n1', 'r1n2', 'r2n1', 'r2n2'])
    """
    names: list[str] = []
    for part in _parts(text, where):
        pieces = _BRACKET.split(part)
        found = [pieces[0]]
        for inside, after in zip(pieces[1::2], pieces[2::2], strict=True):
            numbers = list(_numbers(inside, where, part))
            if len(found) * len(numbers) > MAX_NAMES:
                raise UsageError(f"{where}: `{part[:60]}` is more than {MAX_NAMES:,} names")
            found = [f"{name}{number}{after}" for name in found for number in numbers]
        names += found
        if len(names) > MAX_NAMES:
            raise UsageError(f"{where}: more than {MAX_NAMES:,} names")
    return names


def _parts(text: str, where: str) -> Iterator[str]:
    text = text.strip()
    start = 0
    while start < len(text):
        match = _PART.match(text, start)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            raise UsageError(
                f"{where}: `{text[:60]}` is no list of names",
                hint="brackets hold numbers and ranges: node[01-08,11]",
            )
        yield match[0].strip()
        start = match.end() + 1


def _numbers(inside: str, where: str, part: str) -> Iterator[str]:
    for word in inside.split(","):
        match = _RANGE.fullmatch(word.strip())
        if match is None:
            raise UsageError(
                f"{where}: `{part[:60]}`: found `{word[:30]}`, expected a number or a range"
            )
        first, last = match[1], match[2] or match[1]
        count = int(last) - int(first) + 1
        if not 1 <= count <= MAX_NAMES:
            raise UsageError(f"{where}: `{part[:60]}` has a range of {count:,} names")
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))
