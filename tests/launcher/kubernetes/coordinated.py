"""Runs whose coordinator is a thread of the test, and whose pods are processes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.launcher.kubernetes.cases import TARGET
from tests.launcher.kubernetes.pods import RUN, Pods

from parctl.launcher.backend import State
from parctl.launcher.kubernetes.channel import listen
from parctl.launcher.kubernetes.coordinator import coordinate
from parctl.launcher.kubernetes.leader import Leader, settle
from parctl.launcher.kubernetes.report import Report
from parctl.launcher.kubernetes.team import Peer, PodTeam


class Coordinated:
    """The coordinator of a run as a thread of the test, its pods as processes."""

    def __init__(self, plan: Any, folder: Path, nodes: tuple[str, str]) -> None:
        self.pods = Pods(plan=plan, folder=folder, nodes=nodes, target=TARGET)
        self.plan, self.folder = plan, folder
        self.reports: list[Report] = []
        self.state: State | None = None
        self.stop = False
        self.taken: dict[str, str] = {}

    def start(self, earlier: Report | None = None) -> None:
        self.stop = False
        self.thread = threading.Thread(target=self._coordinate, args=(earlier,))
        self.thread.start()

    def join(self) -> None:
        self.thread.join(120)
        assert not self.thread.is_alive()

    def _coordinate(self, earlier: Report | None) -> None:
        team = PodTeam(listen(self.pods.port))
        folder = self.folder / "leader"
        folder.mkdir(exist_ok=True)
        leader = Leader(
            self.plan,
            RUN,
            team=team,
            topology=None,
            folder=folder,
            tell=self.reports.append,
            say=lambda text: None,
        )

        def disrupted(peer: Peer) -> str | None:
            return self.taken.get(peer.place.pod)

        self.state = coordinate(
            leader,
            retries=self.plan.recipe.launch.retries,
            gather_timeout_s=60.0,
            rejoin_s=1.0,
            stopped=lambda: self.stop,
            disrupted=disrupted,
            earlier=earlier,
        )
        if not self.stop:
            settle(leader)
        team.close()

    def wait_for(self, true: Callable[[Report], bool]) -> None:
        for _ in range(2400):
            if any(true(report) for report in list(self.reports)):
                return
            self.thread.join(0.05)
        raise AssertionError(self.reports[-1:])


@contextmanager
def coordinated(folder: Path, nodes: tuple[str, str]) -> Iterator[Callable[[Any], Coordinated]]:
    """Make runs on two nodes; none outlives the `with`."""
    made: list[Coordinated] = []

    def make(plan: Any) -> Coordinated:
        made.append(Coordinated(plan, folder, nodes))
        return made[-1]

    yield make
    for each in made:
        each.stop = True
        each.pods.end()
        each.join()
