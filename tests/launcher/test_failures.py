"""Ranks that fail: who is named, what the others are called, and what a retry does."""

import json
import os
import signal

from tests.launcher.plans import script_plan
from tests.launcher.runs import BACKEND, directory, launch, left, log, python, run, running, until

from parctl.launcher.backend import State
from parctl.launcher.waiting import wait_for

SLEEP = python("import time", "print('up', flush=True)", "time.sleep(60)")


def test_kill_9_of_a_rank_names_it_and_its_groups() -> None:
    launch(script_plan(SLEEP, axes={"fsdp": 2, "tp": 2}))
    status = running()
    os.kill(status.ranks[2].pid or 0, signal.SIGKILL)
    status = wait_for(BACKEND, "probe-1", timeout_s=10)

    assert status.state is State.FAILED
    verdict = status.verdict
    assert verdict is not None
    assert (verdict.rank, verdict.node, verdict.cause) == (2, "laptop", "signal SIGKILL")
    assert verdict.coordinates == {"fsdp": 1, "tp": 0}
    assert verdict.groups == {"fsdp": [0, 2], "tp": [2, 3]}
    assert verdict.victims == ()  # stopped by us, and none of them failed
    assert verdict.last_lines == ("up",)
    assert verdict.sentence.startswith(
        "rank 2 (node laptop, fsdp 1, tp 0) was killed by SIGKILL after "
    )
    assert verdict.sentence.endswith("; its groups: fsdp [0, 2], tp [2, 3]")
    assert [rank.state for rank in status.ranks] == [
        "killed SIGTERM",
        "killed SIGTERM",
        "killed SIGKILL",
        "killed SIGTERM",
    ]
    assert left() == []


def test_an_exception_is_told_from_the_log() -> None:
    fail = python(
        "import os, time",
        "if os.environ['RANK'] == '1': raise ModuleNotFoundError(\"No module named 'flash_attn'\")",
        "time.sleep(60)",
    )
    verdict = run(script_plan(fail, axes={"dp": 4})).verdict

    assert verdict is not None
    assert verdict.rank == 1
    assert verdict.cause == "ModuleNotFoundError: No module named 'flash_attn'"
    assert verdict.fix == "install `flash_attn` in the environment that the ranks run in"
    assert verdict.last_lines[-1] == verdict.cause


def test_an_exception_is_told_from_the_error_file() -> None:
    fail = python(
        "import os, json, sys, time",
        "if os.environ['RANK'] == '0': time.sleep(60)",
        "message = {'message': 'RuntimeError: loss is nan', 'extraInfo': {}}",
        "json.dump({'message': message}, open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w'))",
        "sys.exit(1)",
    )
    verdict = run(script_plan(fail, axes={"dp": 2})).verdict

    assert verdict is not None
    assert (verdict.rank, verdict.cause) == (1, "RuntimeError: loss is nan")


def test_a_rank_that_lost_its_peer_is_a_victim_though_it_exits_first() -> None:
    fail = python(
        "import os, sys, time",
        "if os.environ['RANK'] == '0':",
        "    raise RuntimeError('[gloo/transport/tcp/pair.cc:547] Connection closed by peer')",
        "if os.environ['RANK'] == '2':",
        "    time.sleep(0.7)",  # a slow exit: the peers notice before we do
        "    raise ValueError('bad sample 17')",
        "time.sleep(60)",
    )
    verdict = run(script_plan(fail, axes={"dp": 3})).verdict

    assert verdict is not None
    assert (verdict.rank, verdict.cause) == (2, "ValueError: bad sample 17")
    assert verdict.victims == (0,)


def test_when_all_waited_for_one_rank_the_silent_one_is_pointed_at() -> None:
    fail = python(
        "import os, sys, time",
        "if os.environ['RANK'] == '1': time.sleep(60)",
        "raise RuntimeError('Timed out waiting 1000ms for recv operation to complete')",
    )
    status = run(script_plan(fail, axes={"dp": 3}))
    verdict = status.verdict

    assert verdict is not None
    assert verdict.rank in (0, 2)
    assert "waiting for others: look at rank 1, which had not failed by then" in verdict.sentence


def test_a_stubborn_victim_is_killed_after_a_short_grace() -> None:
    fail = python(
        "import os, signal, sys, time",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "if os.environ['RANK'] == '1': time.sleep(60)",
        "time.sleep(0.3); sys.exit(3)",
    )
    status = run(script_plan(fail, axes={"dp": 2}, stop_grace_s=0.5))

    assert status.verdict is not None
    assert (status.verdict.rank, status.verdict.cause) == (0, "exit 3")
    assert [rank.state for rank in status.ranks] == ["exited 3", "killed SIGKILL"]


def test_a_retry_runs_again_with_its_own_port_and_logs() -> None:
    flaky = python(
        "import os, sys",
        "print(os.environ['PARCTL_ATTEMPT'], os.environ['TORCHELASTIC_RESTART_COUNT'])",
        "print(os.environ['MASTER_PORT'])",
        # by rank 0 alone: else the other's failure may end it before it has printed anything
        "sys.exit(os.environ['RANK'] == '0' and os.environ['PARCTL_ATTEMPT'] != '3')",
    )
    status = run(script_plan(flaky, axes={"dp": 2}, retries=5))

    assert status.state is State.SUCCEEDED
    assert status.restarts == 2
    assert status.verdict is None
    texts = [directory().log(attempt, 0).read_text().split() for attempt in (1, 2, 3)]
    assert [text[:2] for text in texts] == [["1", "0"], ["2", "1"], ["3", "2"]]
    # every attempt's lines are shown, the last attempt's by --tail
    assert len(log(0)) == 6
    assert log(0, tail=2) == ["3 2", texts[2][2]]


def test_retries_are_counted_and_then_the_run_fails() -> None:
    status = run(script_plan(python("import sys; sys.exit(75)"), axes={"dp": 1}, retries=2))

    assert (status.state, status.restarts) == (State.FAILED, 2)
    events = [json.loads(line)["event"] for line in directory().events.read_text().splitlines()]
    assert events == ["attempt started", "attempt failed"] * 3 + ["ended"]
    evidence = [line[:27] for line in BACKEND.why("probe-1").evidence]
    assert evidence == ["attempt 1: rank 0 (node lap", "attempt 2: rank 0 (node lap"]


def test_sigterm_from_elsewhere_is_a_failure_of_its_own_kind() -> None:
    saves = python(
        "import os, signal, sys, time",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))",
        "print('up', flush=True)",
        "time.sleep(60)",
    )
    launch(script_plan(saves, axes={"dp": 2}))
    status = running()
    os.kill(status.ranks[1].pid or 0, signal.SIGTERM)
    verdict = wait_for(BACKEND, "probe-1", timeout_s=10).verdict

    assert verdict is not None
    assert verdict.rank == 1
    assert "left on a SIGTERM that parctl did not send (exit 143)" in verdict.sentence
    assert verdict.victims == ()


def test_what_a_successful_rank_leaves_behind_is_ended() -> None:
    leaves = ["/bin/sh", "-c", "setsid sleep 300 & echo $!"]
    status = run(script_plan(leaves, axes={"dp": 2}))

    assert status.state is State.SUCCEEDED
    for rank in (0, 1):
        pid = int(log(rank)[0])
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}/exe"), seconds=2)  # type: ignore[misc]
    assert left() == []
