"""The prompts of `task: generate`: lines of a text, or bodies of requests. Imports no torch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from parctl.errors import UsageError
from parctl.recipes.corpus import PROMPTS, PROMPTS_FILE

MOST_NAMED = 20  # bad lines in one message


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
    except OSError as error:
        raise UsageError(
            f"generate.prompts = {os.path.normpath(path)}: {error.strerror}",
            hint="a relative path begins at the recipe's folder",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"generate.prompts = {path}: {error}", hint="a .txt or .jsonl file in UTF-8"
        ) from error
    if count == 0:
        raise UsageError(f"generate.prompts = {path} holds no prompt", hint="one per line")


def refuse_bad_prompts(prompts: str) -> None:
    """Raise UsageError for a file without prompts, and for lines that are no requests, all named.

    What is wrong inside a request costs only this request, later.
    """
    wrong = []
    for number, line in read_lines(prompts):
        fault = fault_of(line) if prompts.endswith(".jsonl") else None
        if fault is not None:
            wrong.append(f"{prompts}:{number}: {fault}")
    if wrong:
        more = len(wrong) - MOST_NAMED
        raise UsageError(
            "\n".join(wrong[:MOST_NAMED] + ([f"and {more:,} more lines"] if more > 0 else [])),
            hint='an object per line, such as {"prompt": "Once upon a time", "max_tokens": 32}',
        )


def fault_of(line: str) -> str | None:
    """Return why a line cannot be a request."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(content, dict) or ("prompt" in content) == ("messages" in content):
        return "expected an object with either `prompt` or `messages`"
    return None
