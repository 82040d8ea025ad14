"""Which devices the columns of an `nvidia-smi topo` table stand for.

The header says it. Without one, the rows do: their labels, and every `NV#`, which only stands
between GPUs. The columns after the GPUs are NICs, if it is certain that no GPU is among them: NIC
rows follow, or the NVLinks go up to the last GPU and most GPUs have their row. Otherwise the kind
of those columns is unknown and they are left out.
"""

from dataclasses import dataclass

from parctl.errors import UsageError
from parctl.topology.sources.capture import MAX_DEVICES, too_many
from parctl.topology.sources.smi_table import Table, gpu_number, is_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    num_unnamed: int  # NICs called NIC0, NIC1, ... here because the text does not name them
    num_unknown: int  # columns that may be GPUs or NICs

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.gpus, *self.nics)


def read_columns(table: Table, name: str) -> Columns:
    """Find the columns of a table. Raises UsageError when the rows contradict each other."""
    gpu_rows = [row for row in table.rows.values() if is_gpu(row.label)]
    widths = {len(row.cells) for row in gpu_rows if not row.at_end}
    gpus = [label for label in table.columns if is_gpu(label)]
    nics = [label for label in table.columns if not is_gpu(label)]
    certain = True
    if table.header is None:
        widths = {max(len(row.cells) for row in gpu_rows)}
        gpus = _gpus_of_rows(table, max(widths), name)
        nics = [label for label in table.rows if not is_gpu(label)]
        last_row = max(gpu_number(row.label) for row in gpu_rows)
        reach = len(gpus) - 1 if _last_nvlink(table) == len(gpus) - 1 else -1
        certain = bool(nics) or (reach >= last_row and 2 * len(gpu_rows) > len(gpus))
    extra = max(widths) - len(gpus) - len(nics) if len(widths) == 1 else 0
    if len(gpus) + len(nics) + max(extra, 0) > MAX_DEVICES:
        raise too_many(name, table.line, len(gpus) + len(nics) + extra)
    unnamed: list[str] = []
    if certain:
        free = (label for i in range(2 * MAX_DEVICES) if (label := f"NIC{i}") not in nics)
        unnamed = [next(free) for _ in range(extra)]
    return Columns(
        gpus=tuple(gpus),
        nics=(*nics, *unnamed),
        num_unnamed=len(unnamed),
        num_unknown=0 if certain else max(extra, 0),
    )


def _gpus_of_rows(table: Table, width: int, name: str) -> list[str]:
    last_row = max(gpu_number(label) for label in table.rows if is_gpu(label))
    last = max(last_row, _last_nvlink(table))
    if last_row + 1 > max(width, 1):
        raise UsageError(
            f"{name}:{table.line}: rows up to GPU{last_row}, but {width} columns and no header",
            hint="paste the output of `nvidia-smi topo -m` with its first line",
        )
    return [f"GPU{i}" for i in range(last + 1)]


def _last_nvlink(table: Table) -> int:
    """Column of the last `NV#` in a row of a GPU."""
    return max(
        (
            i
            for row in table.rows.values()
            if is_gpu(row.label)
            for i, code in enumerate(row.cells)
            if code.startswith("NV")
        ),
        default=-1,
    )
