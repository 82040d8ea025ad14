"""`why`: one sentence for a run that goes on, is silent, has ended or failed."""

import os
import time

from tests.launcher.plans import script_plan
from tests.launcher.runs import BACKEND, directory, launch, python, run, running

SLEEP = python("import time", "print('up', flush=True)", "time.sleep(60)")


def test_a_run_that_goes_on_says_so_and_which_ranks_have_ended() -> None:
    ends = python(
        "import os, time",
        "print('up', flush=True)",
        "time.sleep(60) if os.environ['RANK'] == '0' else None",
    )
    launch(script_plan(ends, axes={"dp": 2}))
    running()
    time.sleep(0.2)
    assert BACKEND.why("probe-1").sentence == "the run is going on; ranks that have ended: 1"


def test_a_silent_run_points_at_the_rank_that_is_silent_for_longest() -> None:
    launch(script_plan(SLEEP, axes={"dp": 2}))
    running()
    for rank, age in ((0, 200), (1, 400)):
        long_ago = time.time() - age
        os.utime(directory().log(1, rank), (long_ago, long_ago))
    diagnosis = BACKEND.why("probe-1")

    assert diagnosis.sentence == "the run is alive but silent for 200 s"
    assert diagnosis.fix is not None and diagnosis.fix.startswith("rank 1 is silent for longest")
    assert diagnosis.evidence == (
        "rank 0 wrote its last line 200 s ago",
        "rank 1 wrote its last line 400 s ago",
    )


def test_an_ended_run_says_how_it_ended() -> None:
    run(script_plan(["true"], axes={"dp": 1}), "good")
    run(script_plan(python("raise ValueError('bad sample')"), axes={"dp": 1}), "bad")

    assert BACKEND.why("good").sentence == "the run is Succeeded"
    diagnosis = BACKEND.why("bad")
    assert "failed with ValueError: bad sample" in diagnosis.sentence
    assert diagnosis.evidence[-1] == "ValueError: bad sample"
