"""A look into the data before any process starts: binary files, wrong rows, ids that do not fit.

Files may be larger than memory, so a sample is read: the beginning of a text, and blocks spread
evenly over a tokenised file, which is read whole when it is small. What the sample misses, the
ranks find. Imports neither torch nor numpy.
"""

import sys
from array import array
from itertools import islice
from pathlib import Path

from parctl.errors import UsageError
from parctl.recipes.spec import DataSpec
from parctl.runtime.data.documents import file_format, read_lines, read_rows
from parctl.runtime.data.parquet import open_texts

HEAD_BYTES = 1 << 16  # of a text
BLOCK_BYTES = 1 << 16
NUM_BLOCKS = 64  # of a tokenised file: some milliseconds


def refuse_bad_sample(path: Path, data: DataSpec, vocab_size: int) -> None:
    """Raise UsageError that names the line, or the token, which no rank could use."""
    match file_format(path, data):
        case "bin":
            refuse_foreign_ids(path, vocab_size)
        case "parquet":
            open_texts(path, data.text_key)
        case "jsonl":
            next(read_rows(path, data.text_key), None)
        case "text":
            left = HEAD_BYTES
            for _, line in read_lines(path, limit=HEAD_BYTES):
                left -= len(line)
                if left <= 0:
                    break


def refuse_foreign_ids(path: Path, vocab_size: int) -> None:
    """Raise for a tokenised file with an id that the vocabulary lacks."""
    code = id_code(vocab_size)
    size, width = path.stat().st_size, array(code).itemsize
    refuse_odd_size(path, size, width, vocab_size)
    blocks = range(0, size, BLOCK_BYTES)
    step = max(1, len(blocks) // NUM_BLOCKS)
    with path.open("rb") as file:
        for begin in islice(blocks, 0, None, step):
            file.seek(begin)
            ids = array(code, file.read(BLOCK_BYTES))
            if sys.byteorder == "big":
                ids.byteswap()
            largest = max(ids)
            if largest >= vocab_size:
                raise foreign_id(path, begin // width + ids.index(largest), largest, vocab_size)


def id_code(num_ids: int) -> str:
    """Return the array type of ids: uint16, or uint32 for more than 65,536 of them."""
    return "H" if num_ids <= 1 << 16 else "I"


def refuse_odd_size(path: Path, size: int, width: int, vocab_size: int) -> None:
    if size % width:
        raise UsageError(
            f"{path}: {size} bytes is no multiple of {width}",
            hint=f"ids are uint{8 * width} for a vocabulary of {vocab_size}",
        )


def foreign_id(path: Path, place: int, found: int, vocab_size: int) -> UsageError:
    return UsageError(
        f"{path}: token {place} is {found}, but model.vocab_size is {vocab_size}",
        hint="use the vocabulary that the file was tokenised with",
    )
