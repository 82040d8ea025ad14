"""Metrics: one JSON line and one log line per reported step, written by one rank."""

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Rates cover the steps since the line before.

    None: not known, or not measured in this step.
    """

    run: str
    attempt: int
    step: int
    time_unix: float
    loss: float
    grad_norm: float  # before clipping
    lr: float
    tokens: int  # since step 1
    tokens_per_s: float  # of all ranks together
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float | None
    mfu: float | None
    mem_peak_bytes: int  # of the reporting rank
    step_time_s: float
    predicted_step_time_s: float | None  # by the plan; None: it does not say
    predicted_mem_bytes: int | None  # the same, of the rank that needs most
    validation_loss: float | None
    expert_load: float | None  # busiest expert over the mean, mean of layers; models with experts
    expert_dropped: float | None  # share of the choices of experts

    def log_line(self, steps: int) -> str:
        """Return what people read.

        >>> metrics.log_line(200) 'step 10/200 loss 4.1234 grad_norm 1.23 lr 3.0e-04 12,345 tok/s
        0.01 TFLOP/s mfu -- mem 0.3 GiB'
        """
        tflops = (
            "--" if self.model_tflops_per_gpu is None else format_rate(self.model_tflops_per_gpu)
        )
        mfu = "--" if self.mfu is None else f"{self.mfu:.1%}"
        line = (
            f"step {self.step}/{steps} loss {self.loss:.4f} grad_norm {self.grad_norm:.2f} "
            f"lr {self.lr:.1e} {self.tokens_per_s:,.0f} tok/s {tflops} TFLOP/s mfu {mfu} "
            f"mem {self.mem_peak_bytes / 2**30:.1f} GiB"
        )
        if self.validation_loss is not None:
            line += f" validation_loss {self.validation_loss:.4f}"
        if self.expert_load is not None:
            line += f" expert_load {self.expert_load:.2f}"
        if self.expert_dropped:
            line += f" dropped {self.expert_dropped:.1%}"
        return line


def format_rate(rate: float) -> str:
    """Two decimals, more when the number would vanish.

    >>> format_rate(0.00042), format_rate(412.3)
    ('0.00042', '412.30')
    """
    return f"{rate:.2f}" if rate >= 0.01 else f"{rate:.2g}"


class Reporter:
    """Writes `metrics.jsonl` and the log, on one rank; on the others it only keeps time."""

    def __init__(
        self,
        *,
        path: Path | None,
        run: str,
        attempt: int,
        steps: int,
        tokens_per_step: int,
        world_size: int,
        estimates: Mapping[str, Any],
        memory: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self._file = path.open("a", encoding="utf-8") if path else None
        self._run, self._attempt, self._steps = run, attempt, steps
        self._tokens_per_step, self._world_size = tokens_per_step, world_size
        self._flops_per_token: float | None = estimates.get("model_flops_per_token")
        self._peak_flops: float | None = estimates.get("peak_flops_per_device")
        self._predicted = {**memory, **estimates}
        self._device = device
        self._last_time, self._steps_since = time.perf_counter(), 0

    def say(self, text: str) -> None:
        if self._file:
            print(text, flush=True)

    def restart_clock(self) -> None:
        """Leave out what happened since the last report: validation, checkpoints."""
        self._last_time, self._steps_since = time.perf_counter(), 0

    def count_step(self) -> None:
        self._steps_since += 1

    def report(
        self,
        *,
        step: int,
        loss: float,
        grad_norm: float,
        lr: float,
        validation_loss: float | None,
        expert_load: tuple[float, float],
    ) -> None:
        """Write the two lines. `expert_load` is (0, 0) for a model without experts."""
        if not self._file:
            return
        seconds = (time.perf_counter() - self._last_time) / max(1, self._steps_since)
        rate = self._tokens_per_step / seconds
        rate_per_gpu = rate / self._world_size
        flops = None if self._flops_per_token is None else self._flops_per_token * rate_per_gpu
        metrics = StepMetrics(
            run=self._run,
            attempt=self._attempt,
            step=step,
            time_unix=time.time(),
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens=step * self._tokens_per_step,
            tokens_per_s=rate,
            tokens_per_s_per_gpu=rate_per_gpu,
            model_tflops_per_gpu=None if flops is None else flops / 1e12,
            mfu=None if flops is None or not self._peak_flops else flops / self._peak_flops,
            mem_peak_bytes=peak_memory(self._device),
            step_time_s=seconds,
            predicted_step_time_s=self._predicted.get("step_time_s"),
            predicted_mem_bytes=self._predicted.get("total_bytes"),
            validation_loss=validation_loss,
            expert_load=expert_load[0] or None,
            expert_dropped=expert_load[1] if expert_load[0] else None,
        )
        self._file.write(json.dumps(asdict(metrics)) + "\n")
        self._file.flush()
        self.say(metrics.log_line(self._steps))

    def close(self) -> None:
        if self._file:
            self._file.close()


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this rank: of the accelerator's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
