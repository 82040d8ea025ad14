"""The first process of a pod: it stands between the leader of the run and the ranks of the pod.

::

    leader --TCP-- agent --pipes-- node process --+-- fork server
                     |                            +-- rank 0, rank 1, ...
                     +-- leader (first pod, native recovery)

It decides nothing while the leader can be reached. It prints what ranks write, hands on orders and
news, passes on that the pod has been told to end, and leaves with the code that the leader says.
Without a leader it has the ranks save and leave, and then meets the leader again (coordinator), or
leaves with a code that says that trying again may help (native).
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.channel import SILENT_S, Channel, ChannelClosedError
from parctl.launcher.kubernetes.node_process import NodePipe
from parctl.launcher.kubernetes.report import (
    MARK,
    METRICS,
    REPEAT_LINES,
    REPORT,
    SAY,
    last_words,
    read_report,
)
from parctl.launcher.secrets import redact

RELAY = "parctl.launcher.kubernetes.relay"
CONNECT_S = 5.0
# a leader that is up a moment later is met a moment later; a thousand pods may wait for one
RETRY_S = (0.05, 0.1, 0.2, 0.2, 0.2, 0.2, 0.5, 1.0)
TAIL_LINES = 200
OVER_S = 10.0  # after the ranks' grace, until the node process counts as stuck


class Agent:
    """One pod. `hello` is what the leader is told about it."""

    def __init__(
        self,
        hello: Mapping[str, Any],
        *,
        leader: tuple[str, int],
        node: NodePipe,
        own_leader: subprocess.Popen[bytes] | None,
        coordinated: bool,  # the leader outlives its attempts
        stop_grace_s: float,
        secrets: list[str],  # values that no message may hold
        last_words: Path,
        endpoint_port: int | None = None,  # where clients come in, whichever pod has the endpoint
    ) -> None:
        self._hello, self._leader, self._node = hello, leader, node
        self._own_leader, self._coordinated = own_leader, coordinated
        self._stop_grace_s, self._secrets = stop_grace_s, secrets
        self._last_words = last_words
        self._endpoint_port = endpoint_port
        self._relay: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(node.output, selectors.EVENT_READ)
        if own_leader is not None:
            assert own_leader.stdout is not None
            os.set_blocking(own_leader.stdout.fileno(), False)
            self._selector.register(own_leader.stdout, selectors.EVENT_READ)
        self._partial = b""
        self._tails: dict[int, deque[str]] = {}
        self._report = ""  # the leader's last one
        self._printed = 0  # lines since then
        self._told_to_end: float | None = None  # when; monotonic
        self._tell_end = False
        self._running = False  # ranks have been started and are not over
        self._on_trial = False  # they are the preflight's
        self._code: int | None = None
        signal.signal(signal.SIGTERM, self._note_stop)

    def run(self, *, connect_timeout_s: float) -> int:
        """Serve until the leader says that it is done; return the exit code."""
        while self._code is None:
            deadline = time.monotonic() + connect_timeout_s
            if self._channel is None and not self._connect(deadline):
                self._leave_alone("the pod that leads the run cannot be reached")
                break
            self._serve_once()
        self._hang_up()  # the leader waits for that
        self._node.dismiss()
        self._drain_leader()
        return self._code if self._code is not None else names.RETRY

    def _note_stop(self, number: int, frame: object) -> None:
        if self._told_to_end is None:
            self._told_to_end = time.monotonic()
            self._tell_end = True

    # the leader

    def _connect(self, deadline: float) -> bool:
        """Find the leader by name. False: it did not come up, or this pod is to end first."""
        tries = 0
        while time.monotonic() < deadline:
            if self._told_to_end is not None and not self._running:
                return False
            with suppress(OSError, ChannelClosedError):
                connection = socket.create_connection(self._leader, timeout=CONNECT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                channel = Channel(connection)
                channel.send({"hello": self._hello})
                self._channel = channel
                self._selector.register(channel, selectors.EVENT_READ)
                return True
            self._pump_node(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1
        return False

    def _serve_once(self) -> None:
        self._pump_node(0.25)
        channel = self._channel
        if channel is None:  # it broke under what the node process had to say
            return
        try:
            if self._tell_end:
                self._tell_end = False
                channel.send({"leaving": self._stop_grace_s})
            channel.beat()
            for message in channel.receive():
                self._obey(message)
                if self._code is not None or self._channel is None:
                    return
            if channel.silent_s > SILENT_S:
                raise ChannelClosedError("silent")
        except ChannelClosedError:
            self._lose_leader()

    def _obey(self, message: Mapping[str, Any]) -> None:
        if "busy" in message:  # the leader of an attempt that is ending
            self._hang_up()
            time.sleep(0.5)
        elif "order" in message:
            if "start" in message["order"]:
                self._running = True
                self._hand_clients_on(message["order"]["start"])
                self._on_trial = message["order"]["start"]["attempt"] == 0
                self._tails.clear()
            self._node.send(message["order"])
        elif "done" in message:
            self._finish(message["done"])

    def _hand_clients_on(self, start: Mapping[str, Any]) -> None:
        """Relay from this pod to the one with torch's rank 0, until ranks start elsewhere."""
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
            self._relay = None
        is_trial = start["attempt"] == 0
        if self._endpoint_port is not None and not start["leads"] and not is_trial:
            target = start["ranks"][0]["env"]["MASTER_ADDR"]
            words = [sys.executable, "-P", "-m", RELAY, str(self._endpoint_port), target]
            self._relay = subprocess.Popen(words, stdin=subprocess.DEVNULL)

    def _finish(self, done: Mapping[str, Any]) -> None:
        self._code = int(done["code"])
        report = read_report(done["report"])
        if report is not None:
            with suppress(OSError):
                self._last_words.write_text(last_words(report), encoding="utf-8")
            if report.verdict is not None:
                print(f"{MARK}{SAY}{report.verdict.sentence}", flush=True)

    def _lose_leader(self) -> None:
        self._hang_up()
        self._stop_ranks()
        if self._coordinated and self._told_to_end is None:
            return  # `run` connects again
        self._leave_alone("the pod that leads the run is gone")

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._selector.unregister(self._channel)
            self._channel.close()
            self._channel = None

    def _leave_alone(self, why: str) -> None:
        if self._told_to_end is not None:
            self._stop_ranks()
            self._code = names.SAVED
            why = f"the pod was told to end; {why}"
        else:
            self._code = names.RETRY
        print(f"{MARK}{SAY}{why}", flush=True)
        with suppress(OSError):
            self._last_words.write_text(why, encoding="utf-8")

    def _stop_ranks(self) -> None:
        """Have the ranks save and leave, and wait until they have."""
        if not self._running:
            return
        self._node.send({"stop": self._stop_grace_s})
        until = time.monotonic() + self._stop_grace_s + OVER_S
        while self._running and time.monotonic() < until and self._node.alive:
            self._pump_node(0.25)

    # the node process and the leader's own output

    def _pump_node(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._node.output:
                if not self._node.alive:
                    self._selector.unregister(self._node.output)
            elif self._own_leader is not None and key.fileobj is self._own_leader.stdout:
                self._read_leader()
        for news in self._node.news():
            self._hand_on(news)
        self._node.beat()

    def _hand_on(self, news: dict[str, Any]) -> None:
        lines = news.pop("lines", ())
        for rank, text in lines:
            self._tails.setdefault(rank, deque(maxlen=TAIL_LINES)).append(text)
            self._print(f"[rank {rank}] {text}")
        if lines and self._on_trial:  # the leader reads what was measured
            news["lines"] = lines
        if "exit" in news:
            end = news["exit"]
            if "kind" in end:
                end["cause"] = redact(str(end["cause"]), self._secrets)
                tail = self._tails.get(end["rank"], ())
                news["lines"] = [[end["rank"], redact(text, self._secrets)] for text in tail]
        if "over" in news or "gone" in news:
            self._running = False
        if news and self._channel is not None:
            try:
                self._channel.send({"news": news})
            except ChannelClosedError:
                self._lose_leader()

    def _read_leader(self) -> None:
        assert self._own_leader is not None and self._own_leader.stdout is not None
        try:
            data = os.read(self._own_leader.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._own_leader.stdout)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._print(line.decode(errors="replace"))

    def _drain_leader(self) -> None:
        """Wait for our own leader's end: it has to let the other agents go."""
        if self._own_leader is None or self._own_leader.stdout is None:
            return
        os.set_blocking(self._own_leader.stdout.fileno(), True)
        rest = self._partial + self._own_leader.stdout.read()
        for line in rest.splitlines():
            self._print(line.decode(errors="replace"))
        self._own_leader.wait()

    def _print(self, line: str) -> None:
        if line.startswith(MARK + REPORT):
            self._report, self._printed = line, 0
        elif not line.startswith(MARK + METRICS):
            self._printed += 1
        sys.stdout.write(f"{line}\n")
        if self._report and self._printed >= REPEAT_LINES:
            sys.stdout.write(f"{self._report}\n")
            self._printed = 0
        sys.stdout.flush()
