"""The agents of a run as its leader sees them: who is there, who is lost, what they say.

A `Team`: members by node, orders to them, and news of them.
"""

import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from parctl.launcher.kubernetes.binding import Place
from parctl.launcher.kubernetes.channel import SILENT_S, Channel, ChannelClosedError
from parctl.launcher.nodes.team import News


@dataclass(slots=True, kw_only=True)
class Peer:
    """One agent that has said who it is."""

    index: int  # of its pod
    uid: str  # of its pod
    attempts: int  # before this one, as the cluster counts them
    address: str
    missing: tuple[str, ...]  # what its image lacks
    python: str  # the interpreter of the ranks
    place: Place
    channel: Channel
    lost: str | None = None
    leaving: bool = False  # its pod was told to end
    released: bool = False  # it has been told to leave

    @property
    def node(self) -> str:
        return self.place.node


class PodTeam:
    """Accepts agents on `listener`. `closed_to_new`: an attempt is under way without them."""

    def __init__(self, listener: socket.socket) -> None:
        self.peers: dict[int, Peer] = {}
        self.lost_at: dict[str, float] = {}  # pods that were lost, and when; monotonic
        self.closed_to_new = False
        self.leaving_s: float | None = None  # a pod was told to end: how long ranks may save
        self._listener = listener
        self._strangers: list[Channel] = []  # connected, and have not said who they are
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._pending: list[News] = []

    @property
    def members(self) -> Mapping[str, Peer]:
        """By node."""
        return {peer.node: peer for peer in self.peers.values()}

    @property
    def lost(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.lost is not None]

    def tell(self, node: str, order: Mapping[str, Any]) -> None:
        for peer in self.peers.values():
            if peer.node == node:
                self.send(peer, {"order": order})

    def tell_all(self, order: Mapping[str, Any]) -> None:
        for peer in list(self.peers.values()):
            self.send(peer, {"order": order})

    def send(self, peer: Peer, message: Mapping[str, Any]) -> None:
        if peer.lost is not None:
            return
        try:
            peer.channel.send(message)
        except ChannelClosedError:
            self._lose(peer, "its connection broke")

    def news(self, timeout_s: float) -> Iterator[News]:
        """Wait for news of any agent, and yield it. A lost agent's last news is `lost`."""
        self.listen(timeout_s)
        news, self._pending = self._pending, []
        yield from news

    def listen(self, timeout_s: float) -> None:
        """Accept agents, take what they say, note who is gone."""
        until = time.monotonic() + timeout_s
        while not self._pending:
            left = until - time.monotonic()
            for key, _ in self._selector.select(max(0.0, left)):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            for peer in list(self.peers.values()):
                self._look_after(peer)
            if left <= 0 or not self.closed_to_new:
                return

    def begin(self) -> None:
        """Take nobody else in, and forget what was said before the attempt."""
        self.closed_to_new = True
        self._pending.clear()

    def forget(self, peer: Peer) -> None:
        if self.peers.get(peer.index) is peer:
            del self.peers[peer.index]
        self._drop(peer.channel)

    def close(self) -> None:
        for peer in list(self.peers.values()):
            self.forget(peer)
        for stranger in list(self._strangers):
            self._drop(stranger)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        channel = Channel(connection)
        self._strangers.append(channel)
        self._selector.register(channel, selectors.EVENT_READ, channel)

    def _hear(self, channel: Channel) -> None:
        peer = next((peer for peer in self.peers.values() if peer.channel is channel), None)
        try:
            messages = channel.receive()
        except (ChannelClosedError, ValueError):
            if peer is None:
                self._drop(channel)
            else:
                self._lose(peer, "its pod ended")
            return
        for message in messages:
            if "hello" in message:
                self._welcome(channel, message["hello"])
            elif peer is not None and "leaving" in message:
                peer.leaving = True
                self.leaving_s = min(self.leaving_s or 1e9, float(message["leaving"]))
            elif peer is not None and "news" in message:
                self._pending.append(News(node=peer.node, content=message["news"]))

    def _welcome(self, channel: Channel, hello: Mapping[str, Any]) -> None:
        index = int(hello["index"])
        before = self.peers.get(index)
        alive = before is not None and before.lost is None
        if self.closed_to_new or (alive and before is not None and before.uid == hello["uid"]):
            # an agent of the next attempt, which has met the leader of this one
            self._refuse(channel)
            return
        if before is not None:
            self.forget(before)
        if channel in self._strangers:
            self._strangers.remove(channel)
        self.peers[index] = Peer(
            index=index,
            uid=hello["uid"],
            attempts=int(hello["attempts"]),
            address=hello["address"],
            missing=tuple(hello["missing"]),
            python=hello["python"],
            place=Place(pod=hello["pod"], node=hello["node"], hardware=hello["hardware"]),
            channel=channel,
        )

    def _refuse(self, channel: Channel) -> None:
        with suppress(ChannelClosedError):
            channel.send({"busy": 1})
        self._drop(channel)

    def _look_after(self, peer: Peer) -> None:
        if peer.lost is not None:
            return
        try:
            peer.channel.beat()
        except ChannelClosedError:
            self._lose(peer, "its connection broke")
            return
        if peer.channel.silent_s > SILENT_S:
            self._lose(peer, f"it has not answered for {SILENT_S:.0f} s")

    def _lose(self, peer: Peer, why: str) -> None:
        if peer.lost is None:
            peer.lost = why
            self.lost_at[peer.place.pod] = time.monotonic()
            self._drop(peer.channel)
            if not peer.released:
                self._pending.append(News(node=peer.node, content={"lost": why}))

    def _drop(self, channel: Channel) -> None:
        if channel in self._strangers:
            self._strangers.remove(channel)
        try:
            self._selector.unregister(channel)
        except (KeyError, ValueError):
            return
        channel.close()
