"""Ages as people write them: `30s`, `10m`, `2h`, `1d`."""

import re
import time

from parctl.errors import UsageError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_age(text: str) -> float:
    """Return the time (unix seconds) that lies so far back; a number without a unit is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise UsageError(f"`{text}` is no age", hint="write it as 30s, 10m, 2h or 1d")
    return time.time() - float(match[1]) * SECONDS[match[2] or "s"]
