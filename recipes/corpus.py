"""Data that ships with parctl: the text `corpus://guide`, which the demo trains on.

`corpus://stripes` are images that are drawn as they are read (`parctl.runtime.data.images`).
"""

from pathlib import Path

SCHEME = "corpus://"
GUIDE, STRIPES = "corpus://guide", "corpus://stripes"
CORPORA = {"guide": Path(__file__).parent / "corpus"}


def corpus_files(uri: str) -> list[Path]:
    """List the files of a shipped corpus, sorted by name.

    The loader has checked the name, so an unknown one is a programmer's error here.
    """
    assert uri.startswith(SCHEME), uri
    return sorted(CORPORA[uri.removeprefix(SCHEME)].glob("*.md"))
