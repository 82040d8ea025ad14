"""Run ids: `NAME-XXXXXX`, a DNS label of at most 40 characters, a name on every back end."""

import re
import secrets
from collections.abc import Sequence
from difflib import get_close_matches

from parctl.errors import UnknownRunError, UsageError
from parctl.launcher.places import MAX_RUN_ID

SUFFIX_LENGTH = 6
# no vowels, so no words; no look-alikes
ALPHABET = "bcdfghjkmnpqrstvwxz2456789"
LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def new_run_id(name: str) -> str:
    """Make an id from a recipe's name.

    There are 26^6 suffixes: two equal ones in a thousand runs are 0.2 percent likely, and a back
    end refuses the second.

    >>> new_run_id("LLaMA 70B")  # doctest: +SKIP
    'llama-70b-x4kq2n'
    """
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label or not label[0].isalpha():
        label = f"run-{label}".strip("-")
    label = label[: MAX_RUN_ID - SUFFIX_LENGTH - 1].rstrip("-")
    return f"{label}-{''.join(secrets.choice(ALPHABET) for _ in range(SUFFIX_LENGTH))}"


def check_run_id(run_id: str) -> str:
    """Return the id, or raise UsageError saying which rule it breaks."""
    if len(run_id) > MAX_RUN_ID:
        raise UsageError(
            f"run id `{run_id}` has {len(run_id)} characters, {MAX_RUN_ID} are allowed",
            hint="choose a shorter `--run-id` or `--name`",
        )
    if not LABEL.fullmatch(run_id):
        raise UsageError(
            f"run id `{run_id}` is not a DNS label",
            hint="small letters, digits and `-`, a letter first, no `-` at the end",
        )
    return run_id


def match_run_id(text: str, known: Sequence[str]) -> str:
    """Return the one run that `text` names in full or begins."""
    if text in known:
        return text
    matches = sorted(run_id for run_id in known if text and run_id.startswith(text))
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
        raise UnknownRunError(
            f"`{text}` is the beginning of {len(matches)} runs: {shown}",
            hint="give more of the id",
        )
    nearest = get_close_matches(text, known, n=3, cutoff=0.5)
    raise UnknownRunError(
        f"there is no run `{text}`",
        hint=f"did you mean {' or '.join(f'`{near}`' for near in nearest)}?"
        if nearest
        else "`parctl list` shows the runs",
    )
