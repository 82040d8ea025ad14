"""The prompts of `task: generate`: lines of a text, or bodies of requests. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path

from parctl.errors import UsageError
from parctl.recipes.corpus import PROMPTS, PROMPTS_FILE


def read_lines(prompts: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers in the file, from 1.

    Raises UsageError for a file that cannot be read, or holds nothing.
    """
    path = PROMPTS_FILE if prompts == PROMPTS else Path(prompts)
    count = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    count += 1
                    yield number, line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"generate.prompts = {path}: {error}", hint="a .txt or .jsonl file in UTF-8"
        ) from error
    if count == 0:
        raise UsageError(f"generate.prompts = {path} holds no prompt", hint="one per line")
