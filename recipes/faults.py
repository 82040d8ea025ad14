"""A fault: what is wrong at a path of the recipe, before anybody knows which line that is."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    path: str  # dotted, as in `train.seq_len`
    message: str  # what was found and what was expected
    hint: str
    at_key: bool = False  # the key itself is wrong, not its value


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
