"""Training in pods on two nodes is the training that this machine does by itself."""

import pytest
from tests.launcher.kubernetes.parity import equal, run_here, run_on_cluster
from tests.launcher.kubernetes.real import Here

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # torch is imported eight times


def test_the_loss_of_a_queued_jobset_is_the_loss_of_a_local_run(here: Here) -> None:
    wanted = run_here(here, "tiny-llama")

    ours = run_on_cluster(here, "tiny-llama", "kueue")

    assert equal(ours, wanted), (ours, wanted)
