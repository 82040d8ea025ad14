"""A sample while it is being made: its tokens, its blocks, and how far it has been computed.

A request with n samples begins as one sequence. Once its prompt is computed and the n first tokens
are drawn, it forks into n that share the prompt's blocks.
"""

from dataclasses import dataclass, field

from parctl.runtime.inference.block_manager import Table
from parctl.runtime.inference.request import Request


@dataclass(slots=True, kw_only=True, eq=False)
class LiveSequence:
    """Changed by the scheduler only."""

    request: Request
    sample_index: int
    num_samples: int  # of its request that it still stands for; 1 after the fork
    order: tuple[float, int]  # arrival, and the number of its request: who came first
    output: list[int] = field(default_factory=list)
    table: Table = field(default_factory=Table)
    host_blocks: list[int] | None = None  # where its keys and values are while swapped out
    num_scheduled: int = 0  # tokens whose keys and values are there, or will be before the next
    ended: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_tokens) + len(self.output)

    @property
    def num_left(self) -> int:
        """Known tokens that are still to be computed; 0 while its newest token is on the way."""
        return self.num_tokens - self.num_scheduled

    @property
    def is_decoding(self) -> bool:
        """Whether all but its newest token is computed: then one step is one token."""
        return self.num_left == 1 and self.num_scheduled > 0

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        prompt = self.request.prompt_tokens
        if start >= len(prompt):
            return tuple(self.output[start - len(prompt) : end - len(prompt)])
        return (*prompt, *self.output)[start:end]
