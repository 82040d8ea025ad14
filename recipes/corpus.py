"""The text that ships with parctl and that the demo trains on: `corpus://guide`."""

from pathlib import Path

SCHEME = "corpus://"
CORPORA = {"guide": Path(__file__).parent / "corpus"}


def corpus_files(uri: str) -> list[Path]:
    """List the files of a shipped corpus, sorted by name.

    The loader has checked the name, so an unknown one is a programmer's error here.
    """
    assert uri.startswith(SCHEME), uri
    return sorted(CORPORA[uri.removeprefix(SCHEME)].glob("*.md"))
