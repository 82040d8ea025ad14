"""What an attempt asks of the agents on its nodes: Ray's actors and pods answer alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Member(Protocol):
    """The agent of one node."""

    @property
    def node(self) -> str: ...

    @property
    def address(self) -> str: ...

    lost: str | None  # why nothing can be asked of it any more


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one agent says."""

    node: str
    content: Mapping[str, Any]


class Team(Protocol):
    """The agents of one attempt."""

    @property
    def members(self) -> Mapping[str, Member]:
        """By node."""
        ...

    @property
    def lost(self) -> Sequence[Member]: ...

    def tell(self, node: str, order: Mapping[str, Any]) -> None:
        """Send an order, unless the agent is lost."""
        ...

    def tell_all(self, order: Mapping[str, Any]) -> None: ...

    def news(self, timeout_s: float) -> Iterator[News]:
        """Wait for news of any agent, and yield it. A lost agent's last news is `lost`."""
        ...
