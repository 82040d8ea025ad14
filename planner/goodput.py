"""What failures leave of a run's time: how often to save, and the share that is real progress.

Nodes fail independently, each after H hours on average, and one that fails ends the step of all::

    M = H / nodes                     mean time between failures of the job
    E = M e^(R/M) (e^((t + d)/M) - 1) expected wall time for t seconds of progress and a save
    goodput = t / E

with d seconds per save and R from a failure until work goes on. A failure loses everything since
the last save, and may come while saving or restarting, too. E is exact for failures without memory
(Daly, Future Generation Computer Systems 22, 2006). The best t has no closed form; his
approximation is within a percent where saves are much shorter than M, and Young's (CACM 17, 1974)
is its first term::

    Young   t = sqrt(2 d M)
    Daly    t = sqrt(2 d M) (1 + sqrt(d/(2M))/3 + d/(2M)/9) - d     for d < 2M, else M
"""

from dataclasses import dataclass
from math import exp, expm1, inf, sqrt

LONGEST = 700.0  # exponents beyond which a float overflows: no progress to speak of


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How a job fails and what each failure costs. Seconds."""

    mtbf_s: float  # of the job: any of its nodes
    checkpoint_s: float  # training stands still for this long at every save
    restart_s: float  # from a failure until steps go on, beside the steps lost

    @property
    def young_s(self) -> float:
        """Young's interval between saves."""
        return sqrt(2 * self.checkpoint_s * self.mtbf_s)

    @property
    def daly_s(self) -> float:
        """Daly's interval between saves: seconds of progress from one to the next."""
        ratio = self.checkpoint_s / (2 * self.mtbf_s)
        if ratio >= 1:
            return self.mtbf_s
        return self.young_s * (1 + sqrt(ratio) / 3 + ratio / 9) - self.checkpoint_s

    def wall_s(self, interval_s: float) -> float:
        """Expected wall time for `interval_s` of progress and the save behind it."""
        whole, again = (interval_s + self.checkpoint_s) / self.mtbf_s, self.restart_s / self.mtbf_s
        if max(whole, again, whole + again) > LONGEST:
            return inf
        return self.mtbf_s * exp(again) * expm1(whole)

    def goodput(self, interval_s: float) -> float:
        """Share of wall time that is progress when saving every `interval_s` seconds of it."""
        wall = self.wall_s(interval_s)
        return interval_s / wall if wall > 0 else 1.0


def job_failures(
    *, node_mtbf_hours: float, num_nodes: int, checkpoint_s: float, restart_s: float
) -> Failures:
    """A job on `num_nodes` nodes that each fail after `node_mtbf_hours` on average.

    >>> job_failures(
    ...     node_mtbf_hours=6000, num_nodes=2000, checkpoint_s=30, restart_s=300
    ... ).mtbf_s
    10800.0
    """
    return Failures(
        mtbf_s=node_mtbf_hours * 3600 / num_nodes, checkpoint_s=checkpoint_s, restart_s=restart_s
    )
