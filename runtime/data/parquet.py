"""Documents from parquet files: one per row, under `data.text_key`. Needs the package pyarrow.

Rows are read batch by batch, and only the column of the texts.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.errors import UsageError

ROWS = 1024  # that are read at once


def open_texts(path: Path, text_key: str) -> Any:
    """Return the opened file, which has a column of texts. Raises UsageError otherwise."""
    if find_spec("pyarrow") is None:
        raise UsageError(
            f"{path} needs the package pyarrow, which is not installed",
            hint="`pip install 'parctl[parquet]'`",
        )
    from pyarrow import ArrowException, parquet, types

    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}: not parquet: {error}", hint="is the file complete?") from error
    schema = file.schema_arrow
    if text_key not in schema.names:
        raise UsageError(
            f"{path}: no column `{text_key}`, found: {', '.join(schema.names)}",
            hint="set data.text_key to the column that holds the text",
        )
    found = schema.field(text_key).type
    if not (types.is_string(found) or types.is_large_string(found)):
        raise UsageError(
            f"{path}: column `{text_key}` holds {found}, expected string",
            hint="set data.text_key to the column that holds the text",
        )
    return file


def read_texts(path: Path, text_key: str) -> Iterator[str]:
    """Yield the text of every row."""
    from pyarrow import ArrowException

    number = 0
    try:
        batches = open_texts(path, text_key).iter_batches(
            batch_size=ROWS, columns=[text_key], use_threads=False
        )
        for batch in batches:
            for text in batch.column(0).to_pylist():
                number += 1
                if text is None:
                    raise UsageError(
                        f"{path}: row {number} has no text under `{text_key}`",
                        hint="remove the row",
                    )
                yield text
    except (ArrowException, OSError) as error:
        raise UsageError(
            f"{path}: cannot be read after row {number}: {error}", hint="is the file complete?"
        ) from error
