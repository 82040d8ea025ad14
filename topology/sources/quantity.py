"""Kubernetes quantities: `98296Mi`, `31850m`, `2e3`, `64G`."""

import re

_QUANTITY = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?(?:[eE](\d{1,2})|(m|[kKMGTPE]i?))?")
_UNITS = "kMGTPE"


def parse_quantity(value: object) -> int | None:
    """The quantity as a whole number, rounded down; None when it is none.

    >>> parse_quantity("2Ki"), parse_quantity("31850m"), parse_quantity(8), parse_quantity("x")
    (2048, 31, 8, None)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    fraction = match[2] or ""
    digits, scale = int(match[1] + fraction), int(10 ** len(fraction))
    if match[3]:
        return digits * int(10 ** int(match[3])) // scale
    unit = match[4]
    if unit is None:
        return digits // scale
    if unit == "m":
        return digits // (1000 * scale)
    base = 1024 if unit.endswith("i") else 1000
    power = _UNITS.index(unit[0].replace("K", "k")) + 1
    return int(digits * base**power // scale)
