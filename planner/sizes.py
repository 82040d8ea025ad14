"""Bytes in words, in powers of ten as vendors count."""

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def distinct_size_texts(first: float, second: float) -> tuple[str, str]:
    """Write two numbers of bytes with as many digits as it takes to tell them apart.

    >>> distinct_size_texts(127.2e9, 126.9e9), distinct_size_texts(51.5e9, 77e9)
    (('127.2 GB', '126.9 GB'), ('51.5 GB', '77.0 GB'))
    """
    texts = size_text(first), size_text(second)
    for more in range(1, 10):
        if texts[0] != texts[1] or first == second:
            break
        texts = size_text(first, more), size_text(second, more)
    return texts


def size_text(num_bytes: float, more_digits: int = 0) -> str:
    """Write a number of bytes for people, with three digits or so.

    >>> size_text(0), size_text(1_050_000), size_text(73_012_345_678), size_text(1129e9)
    ('0 B', '1.05 MB', '73.0 GB', '1.13 TB')
    """
    size, unit = float(num_bytes), UNITS[0]
    for unit in UNITS:
        if size < 999.5 or unit == UNITS[-1]:
            break
        size /= 1000
    digits = 0 if unit == "B" else more_digits + (0 if size >= 100 else 1 if size >= 10 else 2)
    return f"{size:.{digits}f} {unit}"
