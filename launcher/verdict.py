"""The verdict on a failed attempt: which rank failed first, why, and whom it took down.

One rank's end brings down the others within milliseconds, and theirs may be noticed before its own:
a connection that breaks, a collective that times out. So the first cause is chosen by kind, then by
the order of noticing:

    1. a signal that we did not send     3. a broken connection or collective
    2. an exception of its own           4. stopped by us: never a cause
"""

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from parctl.launcher.backend import Verdict
from parctl.launcher.hang import Hang
from parctl.launcher.log_files import last_lines
from parctl.topology.layout import Layout

SHOWN_LINES = 10
READ_LINES = 200
RETRY_CODE = 75  # the rank says that trying again may help
SAVED_CODE = 143  # the rank got SIGTERM, saved and left

PEER_GONE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo.*(connect|timed? ?out|timeout)|watchdog|"
    r"timed? ?out waiting|collective operation timeout|DistNetworkError|DistStoreError|"
    r"DistBackendError|NCCL error|ncclRemoteError|failed to recv|wait timeout",
    re.IGNORECASE,
)
RANK_PREFIX = re.compile(r"^\[rank\d+\]: ")  # torch puts it before a rank's traceback
GROUP_PREFIX = re.compile(r"^  [|+] ")  # Python draws it beside an exception group
TRACEBACK = re.compile(r"^(Exception Group )?Traceback \(most recent call last\):$")
RAISED = re.compile(r"^[A-Za-z_][\w.]*(: .*)?$")  # how a traceback ends, whatever was raised
EXCEPTION = re.compile(
    r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*$"
)  # with no traceback
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FIXES: Sequence[tuple[str, str]] = (
    (
        r"CUDA out of memory|OutOfMemoryError",
        "lower `train.micro_batch`, set `train.recompute: full`, or shard over more devices",
    ),
    (r"No module named '?torch\b", "`pip install 'parctl[torch]'` where parctl is installed"),
    (r"No module named '?([\w.]+)", "install `{0}` in the environment that the ranks run in"),
    (
        r"cannot listen on \S+ port \d+: Address already in use",
        "free that port, or take another: `serve.port: 0` takes any free one",
    ),
    (
        r"[Aa]ddress already in use",
        "another program has that port: let yours listen on MASTER_PORT, which is kept for it",
    ),
    (r"No space left on device", "free disk space, or set `checkpoint.dir` or XDG_STATE_HOME"),
    (r"invalid device ordinal", "the program counts more GPUs than it has: index by LOCAL_RANK"),
    (r"Exec format error: '([^']+)'", "begin `{0}` with a line such as `#!/bin/sh`"),
    (r"[Tt]oo many open files", "raise the limit: `ulimit -n 65536`"),
    (r"No such file or directory: '([^']+)'", "check that `{0}` exists where the ranks run"),
    (r"Permission denied: '([^']+)'", "check who may read and run `{0}`"),
)


class Kind(IntEnum):
    """Why a rank ended, most telling first."""

    SIGNAL = 1
    OWN = 2
    PEER_GONE = 3
    STOPPED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank ended."""

    rank: int
    code: int  # negative: a signal
    stopped: bool  # we had told it to stop before it ended
    time_unix: float
    log: Path
    error_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A rank's end with its cause in words."""

    end: RankEnd
    kind: Kind
    cause: str


def is_failure(code: int, *, stopped: bool) -> bool:
    """Return whether an exit code fails the run: 143 does not when we asked for it."""
    return code != 0 and not (stopped and code in (SAVED_CODE, -signal.SIGTERM, -signal.SIGKILL))


def written_before(error_file: Path, time_unix: float) -> bool:
    """Whether the rank had failed by itself before it was told to stop."""
    try:
        return error_file.stat().st_mtime < time_unix
    except OSError:
        return False


def classify(end: RankEnd) -> Failure:
    """Find the cause of one rank's end in its signal, its error file and the end of its log."""
    lines = last_lines(end.log, READ_LINES)
    # an uncaught exception exits with 1; before a code of the program's own only last words count
    uncaught = end.code in (1, RETRY_CODE) or end.code < 0
    said = _reported(end.error_file) or _last_exception(lines if uncaught else lines[-SHOWN_LINES:])
    told_of_peer = PEER_GONE.search(said or "\n".join(lines[-20:])) is not None
    if end.stopped:
        kind = Kind.STOPPED
    elif told_of_peer and end.code != -signal.SIGKILL:
        kind = Kind.PEER_GONE
    elif end.code < 0 or end.code == SAVED_CODE:
        kind = Kind.SIGNAL
    else:
        kind = Kind.OWN
    if end.code < 0:
        cause = f"signal {signal_name(-end.code)}"
    else:
        cause = said or (
            "signal SIGTERM (saved and left)" if end.code == SAVED_CODE else f"exit {end.code}"
        )
    return Failure(end=end, kind=kind, cause=cause)


def reach_verdict(
    layout: Layout,
    failures: Sequence[Failure],
    *,
    silent: Sequence[int],
    attempt_started: float,
    oom_kills: int,
    redact: Sequence[str],
    hang: Hang | None = None,
) -> Verdict:
    """Choose the first cause among `failures`, which are in the order of noticing.

    `silent` ranks had to be stopped; `oom_kills` is how many processes the kernel killed meanwhile.
    `hang` is who did not arrive, where all that failed had waited.
    """
    from parctl.launcher.secrets import redact as blank

    first = min(failures, key=lambda failure: failure.kind)  # min keeps the earliest of equals
    if hang is not None:
        return _hang_verdict(layout, failures, hang, first.end.time_unix - attempt_started)
    rank = first.end.rank
    node = layout.slots[rank].node
    coordinates = layout.coordinates(rank)
    groups = _groups_of(rank, layout)
    cause = blank(printable(first.cause), redact)
    place = ", ".join(f"{axis} {index}" for axis, index in coordinates.items())
    shown = f"; {_groups_text(groups)}" if groups else ""
    after = first.end.time_unix - attempt_started
    return Verdict(
        sentence=f"rank {rank} ({', '.join(part for part in (f'node {node}', place) if part)}) "
        f"{_ended(first, cause)} after {after:.1f} s{_suspects(first, silent)}{shown}",
        rank=rank,
        node=node,
        coordinates=coordinates,
        groups=groups,
        cause=cause,
        victims=tuple(
            sorted(
                failure.end.rank
                for failure in failures
                if failure is not first and failure.end.code != 0
            )
        ),
        last_lines=tuple(
            blank(printable(line), redact) for line in last_lines(first.end.log, SHOWN_LINES)
        ),
        fix=_fix(first, cause, oom_kills),
    )


def _hang_verdict(layout: Layout, failures: Sequence[Failure], hang: Hang, after: float) -> Verdict:
    node, coordinates = layout.slots[hang.rank].node, layout.coordinates(hang.rank)
    place = ", ".join([f"node {node}", *(f"{axis} {index}" for axis, index in coordinates.items())])
    waiting = ", ".join(map(str, hang.waiting))
    operation = f"{hang.operation} of " if hang.operation else ""
    return Verdict(
        sentence=f"rank {hang.rank} ({place}) did not arrive: "
        f"rank{'s' if len(hang.waiting) > 1 else ''} {waiting} waited for it in {operation}"
        f"{hang.axis} {_short(list(hang.ranks))} until {after:.1f} s after the start; {hang.doing}",
        rank=hang.rank,
        node=node,
        coordinates=coordinates,
        groups=_groups_of(hang.rank, layout),
        cause=f"did not arrive at {operation}{hang.axis}: {hang.doing}",
        victims=tuple(sorted(failure.end.rank for failure in failures)),
        last_lines=hang.stack,
        fix="its stack is above, innermost first; a longer `train.comm_timeout_s` helps a rank "
        "that is only slow"
        if hang.stack
        else f"look at its node; what it printed last is in `parctl logs RUN --rank {hang.rank}`",
    )


def plain_verdict(sentence: str, *, cause: str, fix: str | None) -> Verdict:
    """A verdict that no rank is to blame for."""
    return Verdict(
        sentence=sentence,
        rank=None,
        node=None,
        coordinates={},
        groups={},
        cause=cause,
        victims=(),
        last_lines=(),
        fix=fix,
    )


def verdict_text(verdict: Verdict) -> str:
    """The verdict as a person reads it; the fix is printed apart, as a hint."""
    parts = [verdict.sentence]
    if verdict.victims:
        shown = ", ".join(str(rank) for rank in verdict.victims[:16])
        more = f" and {len(verdict.victims) - 16} more" if len(verdict.victims) > 16 else ""
        ranks = "rank" if len(verdict.victims) == 1 else "ranks"
        parts.append(f"failed because of it: {ranks} {shown}{more}")
    if verdict.last_lines:
        parts.append(f"last lines of rank {verdict.rank}:")
        parts += [f"  {line}" for line in verdict.last_lines]
    return "\n".join(parts)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def fix_for(text: str) -> str | None:
    """Return what would help against an error text, when that is known."""
    for pattern, fix in FIXES:
        match = re.search(pattern, text)
        if match:
            return fix.format(*match.groups())
    return None


def _ended(first: Failure, cause: str) -> str:
    code = first.end.code
    if code < 0:
        return f"was killed by {signal_name(-code)}"
    if code == SAVED_CODE:
        return "left on a SIGTERM that parctl did not send (exit 143)"
    if cause.startswith("exit "):
        return f"failed with {cause}"
    return f"failed with {_cut(cause)}"


def _suspects(first: Failure, silent: Sequence[int]) -> str:
    """Name the ranks that had not failed, when all that did so waited for somebody else."""
    if first.kind is not Kind.PEER_GONE:
        return ""
    if not silent:
        return ", which is what the loss of a peer looks like"
    ranks = ", ".join(map(str, silent[:8]))
    return f", waiting for others: look at rank {ranks}, which had not failed by then"


def _fix(first: Failure, cause: str, oom_kills: int) -> str | None:
    code = first.end.code
    if code == -signal.SIGKILL:
        if oom_kills > 0:
            return (
                "the kernel ran out of memory and killed it: lower `train.micro_batch`, use fewer "
                "ranks on this machine, or shard more"
            )
        return "parctl did not send this; `kill -9`, a memory limit or the end of a container did"
    if code == -signal.SIGBUS:
        return "SIGBUS usually means that /dev/shm or a mapped file is full: `df -h /dev/shm`"
    lines = "\n".join(last_lines(first.end.log, SHOWN_LINES))
    known = fix_for(cause) or fix_for(lines)
    if known is None and code == RETRY_CODE:
        return "the rank says that trying again may help: `launch.retries: 3`"
    return known


def _reported(error_file: Path) -> str | None:
    """Return what a torchelastic error file says: `{"message": {"message": ...}}`, or plain."""
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    text = message["message"] if isinstance(message, Mapping) and "message" in message else message
    return str(text).strip().splitlines()[0] if str(text).strip() else None


def printable(line: str) -> str:
    """Drop what would move the cursor or change the colours of a reader's terminal.

    >>> printable("\\x1b[31mred\\x1b[0m bell\\x07")
    'red bell'
    """
    return CONTROL.sub("", line)


def _last_exception(lines: Sequence[str]) -> str | None:
    """Return the last line of the last traceback, or the last line that names an error."""
    bare = [GROUP_PREFIX.sub("", RANK_PREFIX.sub("", line)) for line in lines]
    for start in reversed(range(len(bare))):
        if TRACEBACK.match(bare[start]):
            ends = (line for line in bare[start + 1 :] if RAISED.match(line))
            if raised := next(ends, None):
                return raised
        elif EXCEPTION.match(bare[start]):
            return bare[start]
    return None


def _groups_of(rank: int, layout: Layout) -> dict[str, Sequence[int]]:
    """The groups that a rank is in, along the axes and, with experts spread, along those of ep."""
    meshes = [(layout, axis) for axis in layout.axes]
    if layout.expert_axes is not None:
        experts = replace(layout, axes=layout.expert_axes)
        meshes += [(experts, axis) for axis in experts.axes if axis not in layout.axes]
    return {
        axis: next(group for group in mesh.groups(axis) if rank in group)
        for mesh, axis in meshes
        if mesh is layout or mesh.axes[axis] > 1
    }


def _groups_text(groups: Mapping[str, Sequence[int]]) -> str:
    return "its groups: " + ", ".join(
        f"{axis} {_short(list(ranks))}" for axis, ranks in groups.items()
    )


def _short(ranks: list[int]) -> str:
    if len(ranks) <= 8:
        return str(ranks)
    return f"[{ranks[0]}, {ranks[1]}, ..., {ranks[-1]}] ({len(ranks)} ranks)"


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 4] + " ..."
