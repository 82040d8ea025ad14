"""Data that ships with parctl: the text `corpus://guide`, which the demo trains on.

`corpus://stripes` are images that are drawn as they are read (`parctl.runtime.data.images`), and
`corpus://prompts` a few lines for `task: generate`.
"""

from pathlib import Path

SCHEME = "corpus://"
GUIDE, STRIPES, PROMPTS = "corpus://guide", "corpus://stripes", "corpus://prompts"
CORPORA = {"guide": Path(__file__).parent / "corpus"}
PROMPTS_FILE = Path(__file__).parent / "corpus" / "prompts.txt"


def corpus_files(uri: str) -> list[Path]:
    """List the files of a shipped corpus, sorted by name.

    The loader has checked the name, so an unknown one is a programmer's error here.
    """
    assert uri.startswith(SCHEME), uri
    return sorted(CORPORA[uri.removeprefix(SCHEME)].glob("*.md"))
