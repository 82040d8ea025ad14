"""What is wrong at a path of a recipe: a fault, and a problem once its line is known."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    path: str  # dotted, as in `train.seq_len`
    message: str  # what was found and what was expected
    hint: str
    at_key: bool = False  # the key itself is wrong, not its value


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault in a recipe. Lines and columns count from 1; `path` is like `train.seq_len`."""

    file: str
    line: int | None
    column: int | None
    path: str
    message: str  # what was found and what was expected
    hint: str | None

    def __str__(self) -> str:
        place = ":".join(
            str(part) for part in (self.file, self.line, self.column) if part is not None
        )
        text = f"{place} {self.path}: {self.message}" if self.path else f"{place}: {self.message}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text


def nearest(word: str, known: Collection[str]) -> str | None:
    """Find the known word that was probably meant.

    >>> nearest("seq_length", ["seq_len", "steps"])
    'seq_len'
    """
    folded = {_fold(name): name for name in known}
    near = get_close_matches(_fold(word), folded, n=1, cutoff=0.6)
    if near:
        return folded[near[0]]
    inside = [name for name in known if len(_fold(word)) > 2 and _fold(word) in _fold(name)]
    return min(inside, key=len) if inside else None


def did_you_mean(word: str, known: Collection[str], what: str) -> str:
    """Write the hint for an unknown word."""
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else f"{what}: {listed(known)}"


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _fold(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(".", "").replace(" ", "")
