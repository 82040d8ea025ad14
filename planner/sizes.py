"""Bytes in words, in powers of ten as vendors count."""

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size_text(num_bytes: float) -> str:
    """Write a number of bytes for people, with three digits or so.

    >>> size_text(0), size_text(1_050_000), size_text(73_012_345_678), size_text(1129e9)
    ('0 B', '1.05 MB', '73.0 GB', '1.13 TB')
    """
    size, unit = float(num_bytes), UNITS[0]
    for unit in UNITS:
        if size < 999.5 or unit == UNITS[-1]:
            break
        size /= 1000
    digits = 0 if unit == "B" or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {unit}"
