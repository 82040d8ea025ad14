"""Read fields of a plain JSON value, each with a check and an error that names the place.

Missing keys read as null, so that a person may write only what they know; what must be there is
asked for by a method without `optional` in its name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from parctl.errors import UsageError


class Reader:
    """One JSON object and where it stands, such as `cluster.json nodes[3].gpus[0]`."""

    def __init__(self, where: str, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise UsageError(f"{where}: found {_kind(data)}, expected an object")
        self.where = where
        self.data = data

    def error(self, key: str, message: str) -> UsageError:
        return UsageError(f"{self.where}: `{key}` {message}")

    def get(self, key: str) -> Any:
        return self.data.get(key)

    def text(self, key: str) -> str:
        return str(self._required(key, str, "text"))

    def integer(self, key: str) -> int:
        return int(self._required(key, int, "a whole number"))

    def optional_text(self, key: str) -> str | None:
        return None if self.get(key) is None else self.text(key)

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self._required(key, (int, float), "a number")

    def optional_boolean(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"is {_kind(value)}, expected true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self._list(key)
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, f"has {_kind(value)} in it, expected text")
        return tuple(values)

    def mapping(self, key: str) -> dict[str, str]:
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(
            isinstance(item, str) for pair in value.items() for item in pair
        ):
            raise self.error(key, f"is {_kind(value)}, expected an object of text")
        return dict(value)

    def items(self, key: str) -> "Iterator[Reader]":
        for i, value in enumerate(self._list(key)):
            yield Reader(f"{self.where} {key}[{i}]".replace("] ", "]."), value)

    def matrix(self, key: str, num_rows: int, num_columns: int) -> tuple[tuple[str, ...], ...]:
        """Rows of codes, one string each; none at all means that every link is unknown."""
        rows = tuple(tuple(row.split()) for row in self.strings(key))
        if not rows and key == "links":
            return tuple(
                tuple("X" if i == j else "?" for j in range(num_columns)) for i in range(num_rows)
            )
        sizes = [len(row) for row in rows]
        if sizes != [num_columns] * num_rows:
            raise self.error(
                key, f"has rows of {sizes} codes, expected {num_rows} rows of {num_columns}"
            )
        return rows

    def _list(self, key: str) -> list[Any]:
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, f"is {_kind(value)}, expected a list")
        return value

    def _required(self, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.get(key)
        if value is None:
            raise self.error(key, f"is missing, expected {expected}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"is {_kind(value)}, expected {expected}")
        return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), f"the number {value!r}"[:40])
