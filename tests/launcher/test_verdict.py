"""Verdicts: the first cause by kind, then by order; fixes for what is known."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from parctl.launcher.verdict import (
    Failure,
    Kind,
    RankEnd,
    classify,
    fix_for,
    is_failure,
    reach_verdict,
    verdict_text,
    written_before,
)
from parctl.topology.layout import Layout, Slot

LAYOUT = Layout(
    axes={"fsdp": 2, "tp": 2},
    expert_axes=None,
    ranks=(0, 2, 1, 3),  # not the identity
    slots=tuple(
        Slot(rank=rank, node="gpu-box", node_rank=0, local_rank=rank, gpu=rank) for rank in range(4)
    ),
    proofs=(),
    explain=(),
)


def end(folder: Path, rank: int, code: int, text: str = "", *, stopped: bool = False) -> Failure:
    log = folder / f"rank-{rank}.log"
    log.write_text(text)
    return classify(
        RankEnd(
            rank=rank,
            code=code,
            stopped=stopped,
            time_unix=101.0 + rank,
            log=log,
            error_file=folder / f"rank-{rank}.json",
        )
    )


def test_the_groups_of_a_rank_include_those_of_its_experts(tmp_path: Path) -> None:
    layout = replace(LAYOUT, expert_axes={"edp": 1, "ep": 2, "etp": 2})
    verdict = reach_verdict(
        layout,
        [end(tmp_path, 2, -signal.SIGKILL)],
        silent=[],
        attempt_started=100.0,
        oom_kills=0,
        redact=[],
    )
    assert verdict.groups == {"fsdp": [2, 3], "tp": [0, 2], "ep": [2, 3], "etp": [0, 2]}


def test_a_signal_wins_over_an_exception_over_a_lost_peer(tmp_path: Path) -> None:
    lost = end(tmp_path, 0, 1, "RuntimeError: Connection closed by peer [127.0.0.1]:4242")
    own = end(tmp_path, 1, 1, "ValueError: bad sample")
    killed = end(tmp_path, 2, -signal.SIGSEGV)
    stopped = end(tmp_path, 3, 1, "KeyboardInterrupt", stopped=True)
    assert [failure.kind for failure in (lost, own, killed, stopped)] == [
        Kind.PEER_GONE,
        Kind.OWN,
        Kind.SIGNAL,
        Kind.STOPPED,
    ]

    verdict = reach_verdict(
        LAYOUT,
        [lost, own, killed, stopped],
        silent=[],
        attempt_started=100.0,
        oom_kills=0,
        redact=[],
    )
    assert verdict.sentence == (
        "rank 2 (node gpu-box, fsdp 0, tp 1) was killed by SIGSEGV after 3.0 s; "
        "its groups: fsdp [2, 3], tp [0, 2]"
    )
    assert verdict.victims == (0, 1, 3)


def test_of_two_alike_the_one_noticed_first_is_the_cause(tmp_path: Path) -> None:
    first = end(tmp_path, 3, 1, "ValueError: three")
    second = end(tmp_path, 1, 1, "ValueError: one")
    verdict = reach_verdict(
        LAYOUT, [first, second], silent=[], attempt_started=100.0, oom_kills=0, redact=[]
    )
    assert (verdict.rank, verdict.cause, verdict.victims) == (3, "ValueError: three", (1,))


def test_an_abort_by_the_watchdog_of_nccl_is_a_lost_peer(tmp_path: Path) -> None:
    text = "[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    assert end(tmp_path, 1, -signal.SIGABRT, text).kind is Kind.PEER_GONE
    assert end(tmp_path, 1, -signal.SIGKILL, text).kind is Kind.SIGNAL


def test_the_error_file_wins_over_the_log(tmp_path: Path) -> None:
    reported = {"message": {"message": "CheckpointError: torn\nmore", "extraInfo": {}}}
    (tmp_path / "rank-0.json").write_text(json.dumps(reported))
    assert end(tmp_path, 0, 1, "ValueError: else").cause == "CheckpointError: torn"
    (tmp_path / "rank-0.json").write_text('{"message": "plain text"}')
    assert end(tmp_path, 0, 1).cause == "plain text"
    (tmp_path / "rank-0.json").write_text('{"mess')
    assert end(tmp_path, 0, 1).cause == "exit 1"


def test_the_exception_of_a_ranks_own_prefix_is_found(tmp_path: Path) -> None:
    text = "[rank0]: Traceback (most recent call last):\n[rank0]: my.pkg.OddError: no\nbye\n"
    assert end(tmp_path, 0, 1, text).cause == "my.pkg.OddError: no"


@pytest.mark.parametrize(
    ("code", "stopped", "failed"),
    [
        (0, False, False),
        (1, False, True),
        (143, False, True),
        (143, True, False),
        (-signal.SIGTERM, True, False),
        (-signal.SIGKILL, True, False),
        (-signal.SIGKILL, False, True),
        (1, True, True),
    ],
)
def test_143_is_a_failure_only_when_we_did_not_ask(code: int, stopped: bool, failed: bool) -> None:
    assert is_failure(code, stopped=stopped) is failed


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried ...", "lower `train.micro_batch`"),
        ("ModuleNotFoundError: No module named 'torch'", "`pip install 'parctl[torch]'`"),
        ("ModuleNotFoundError: No module named 'torchvision'", "install `torchvision` in"),
        ("OSError: [Errno 98] Address already in use", "another program has that port"),
        (
            "UsageError: cannot listen on 127.0.0.1 port 8000: Address already in use",
            "free that port, or take another: `serve.port: 0`",
        ),
        ("OSError: [Errno 28] No space left on device", "free disk space"),
        ("CUDA error: invalid device ordinal", "the program counts more GPUs than it has"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'a.bin'", "check that `a.bin`"),
    ],
)
def test_a_known_error_has_a_fix(text: str, fix: str) -> None:
    assert (fix_for(text) or "").startswith(fix)


def test_what_is_not_known_has_no_fix() -> None:
    assert fix_for("ValueError: bad sample") is None


def test_an_out_of_memory_kill_is_told_by_the_kernels_count(tmp_path: Path) -> None:
    killed = end(tmp_path, 0, -signal.SIGKILL)
    fixes = [
        reach_verdict(
            LAYOUT, [killed], silent=[], attempt_started=100.0, oom_kills=kills, redact=[]
        ).fix
        for kills in (0, 1)
    ]
    assert fixes[0] is not None and fixes[0].startswith("parctl did not send this")
    assert fixes[1] is not None and fixes[1].startswith("the kernel ran out of memory")


def test_the_text_puts_the_victims_and_the_last_lines_apart(tmp_path: Path) -> None:
    own = end(tmp_path, 1, 1, "step 3\nValueError: bad sample\n")
    lost = end(tmp_path, 0, 1, "Connection reset by peer")
    verdict = reach_verdict(
        LAYOUT, [lost, own], silent=[], attempt_started=100.0, oom_kills=0, redact=[]
    )
    assert verdict_text(verdict).splitlines()[1:] == [
        "failed because of it: rank 0",
        "last lines of rank 1:",
        "  step 3",
        "  ValueError: bad sample",
    ]


TRACE = "Traceback (most recent call last):\n  File 'train.py', line 5, in <module>\n    go()\n"
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "train.py", line 5, in <module>
  | ExceptionGroup: two workers (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | ValueError: bad sample
    +---------------- 2 ----------------
    | TypeError: bad type
    +------------------------------------
"""
EPOCHS = "".join(f"epoch {number}\n" for number in range(30))


@pytest.mark.parametrize(
    ("code", "text", "cause"),
    [
        (1, TRACE + "Boom: custom\n", "Boom: custom"),
        (1, TRACE + "StopIteration\n", "StopIteration"),
        (1, TRACE + "my.package.Boom: two\nlines\n", "my.package.Boom: two"),
        (1, GROUP, "ExceptionGroup: two workers (2 sub-exceptions)"),
        (
            1,
            "  File 'train.py', line 1\nSyntaxError: invalid syntax\n",
            "SyntaxError: invalid syntax",
        ),
        (2, TRACE + "ValueError: said on the way out\n", "ValueError: said on the way out"),
        (9, TRACE + "ValueError: handled\n" + EPOCHS, "exit 9"),
        (6, "DeprecationWarning: this is old\n", "exit 6"),
    ],
)
def test_the_cause_is_what_the_last_traceback_ends_with(
    tmp_path: Path, code: int, text: str, cause: str
) -> None:
    assert end(tmp_path, 0, code, text).cause == cause


def test_what_would_disturb_a_terminal_is_not_shown(tmp_path: Path) -> None:
    failure = end(tmp_path, 0, 1, "\x1b[31mValueError: red\x1b[0m\x1b[2J\x00\x07\n\ttabs stay\n")
    verdict = reach_verdict(
        LAYOUT, [failure], silent=[], attempt_started=100.0, oom_kills=0, redact=[]
    )

    assert verdict.last_lines == ("ValueError: red", "\ttabs stay")


def test_an_error_file_that_cannot_be_there_was_not_written(tmp_path: Path) -> None:
    (tmp_path / "errors").write_text("")
    assert not written_before(tmp_path / "errors" / "rank-0.json", time.time())
