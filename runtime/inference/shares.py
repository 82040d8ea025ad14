"""Whose turn it is: clients that wait get equal shares of tokens.

Each client has a counter of the tokens that were computed for it (2401.00588). Of those that wait,
the one with the smallest counter goes first. Who comes back after a pause begins at the smallest
counter of the others, so idle time cannot be saved up.
"""

from collections.abc import Iterable, Set


class Shares:
    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def arrive(self, client: str, active: Set[str]) -> None:
        """A request came. `active` are the clients, itself perhaps too, that had some already."""
        if client not in active:
            others = [self._tokens[other] for other in active]
            self._tokens[client] = max(
                [self._tokens.get(client, 0), *([min(others)] if others else [])]
            )

    def charge(self, client: str, num_tokens: int) -> None:
        self._tokens[client] += num_tokens

    def next(self, clients: Iterable[str]) -> str:
        """Return the client that is served next; of equals, the first."""
        return min(clients, key=self._tokens.__getitem__)

    def forget_idle(self, active: Set[str]) -> None:
        """Drop the counters of clients that can gain nothing by it."""
        lowest = min((self._tokens[client] for client in active), default=None)
        self._tokens = {
            client: tokens
            for client, tokens in self._tokens.items()
            if client in active or (lowest is not None and tokens > lowest)
        }
