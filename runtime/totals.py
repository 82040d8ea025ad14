"""What all ranks together made of a step: loss, gradient norm, and whether anybody is to leave.

All of it travels in one all-reduce. The device goes on with the numbers; the host gets a copy that
it reads when it has something to say or decide, so that no step waits for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
import torch.distributed as dist
from torch import Tensor

from parctl.errors import ParctlError
from parctl.recipes.spec import TrainSpec
from parctl.runtime.optimizer import own_gradients, own_square_sum
from parctl.runtime.parallel.parallelize import ParallelModel


class Totals:
    """Totals of one step. `norm` and `diverged` are scalars on the device; the rest `read` gives.

    Every rank holds the same numbers, so all draw the same conclusions.
    """

    def __init__(self, step: int, values: Tensor) -> None:
        """`values`: loss, squared norm, how many were asked to stop, load of the experts (two)."""
        self.step = step
        self.norm = values[1].sqrt()
        self.diverged = (~torch.isfinite(values[:2]).all()).to(torch.float32)
        self._copied: torch.cuda.Event | None = None
        self._host = values
        if values.device.type == "cuda":
            self._host = torch.empty_like(values, device="cpu", pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> "HostTotals":
        """Wait for the step's numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, squares, stops, busiest, dropped = self._host.tolist()
        return HostTotals(
            step=self.step,
            loss=loss,
            grad_norm=squares**0.5,
            stopping=stops > 0,
            expert_load=(busiest, dropped),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTotals:
    """The same as Python numbers."""

    step: int
    loss: float
    grad_norm: float  # before clipping
    stopping: bool  # a rank was asked to leave
    expert_load: tuple[float, float]


def exchange_totals(model: ParallelModel, step: int, loss_sum: Tensor, *, stopping: bool) -> Totals:
    """Add up what every rank has."""
    parameters = model.parameters()
    square_sum = own_square_sum(parameters, own_gradients(parameters), model.mesh)
    flag = torch.full((), float(stopping), dtype=torch.float64, device=loss_sum.device)
    loss_share = loss_sum / model.mesh.num_equal_losses
    values = torch.cat((torch.stack((loss_share, square_sum, flag)), model.expert_load()))
    dist.all_reduce(values)
    return Totals(step, values)


class Watch:
    """Reads totals a step late, by when they have long been there; at once where they are needed.

    A step that diverged has changed no weight (`AdamW.update`), so reading late does no harm.
    """

    latest: HostTotals

    def __init__(self, spec: TrainSpec, say: Callable[[str], None]) -> None:
        self._spec, self._say = spec, say
        self._unread: Totals | None = None
        self._left_out = 0  # steps in a row

    def see(self, totals: Totals, *, at_once: bool) -> bool:
        """Return whether a rank was asked to leave. If so, or `at_once`, `latest` is this step's.

        Raises ParctlError when training diverged.
        """
        stopping = self._unread is not None and self._take(self._unread)
        self._unread = totals
        if at_once or stopping:
            self._unread = None
            stopping = self._take(totals) or stopping
        return stopping

    def _take(self, totals: Totals) -> bool:
        self.latest = found = totals.read()
        wrong = divergence(loss=found.loss, grad_norm=found.grad_norm)
        self._left_out = self._left_out + 1 if wrong else 0
        if wrong and (self._spec.on_nan == "stop" or self._left_out > self._spec.max_skips):
            raise diverged(found.step, wrong)
        if wrong:
            self._say(f"step {found.step} is left out: {wrong}")
        return found.stopping


def divergence(**numbers: float) -> str:
    """Name the numbers that are not finite; empty without any."""
    wrong = [f"{name} {value}" for name, value in numbers.items() if not isfinite(value)]
    return ", ".join(wrong)


def diverged(step: int, wrong: str) -> ParctlError:
    """All ranks hold the same numbers, so all of them leave with this error."""
    return ParctlError(
        f"training diverged at step {step}: {wrong}",
        hint="lower train.optimizer.lr, lengthen train.optimizer.warmup_steps, "
        "or set train.optimizer.max_grad_norm",
    )
