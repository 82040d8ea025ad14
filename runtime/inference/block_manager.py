"""Paged key/value memory (PagedAttention, 2309.06180): which block holds which tokens of whom.

Memory is cut into blocks of equally many tokens. A sequence's `Table` names its blocks in order, so
nothing is reserved for tokens that may never come: at most the last block of a sequence is partly
empty. Blocks are counted, and so can be shared::

    fork            two samples of one prompt have the same blocks until one writes to a shared one,
                    which is copied first
    prefix cache    a full block is known by the digest of all tokens up to its end; who begins with
                    the same tokens takes the block instead of computing it

A block that nobody holds stays findable until its memory is needed; the one that was given back
first goes first. Nothing here touches the memory itself: copies are returned as `Operation`s.

Where no layer looks further back than a sliding window, a sequence gives the blocks behind it back
while it lives (`slide`), and a cached beginning is one whose last window is still there.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

GONE = -1  # in a table: a block behind the sliding window, given back


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A block to copy before tokens are written: on the device, to the host, or back."""

    kind: Literal["copy", "out", "in"]
    source: int
    target: int


@dataclass(slots=True, kw_only=True)
class Table:
    """The blocks of one sequence. Changed by the manager only."""

    blocks: list[int] = field(default_factory=list)
    num_tokens: int = 0  # for which there is room, and which are or will be written
    num_gone: int = 0  # of its leading blocks
    digests: list[bytes] = field(default_factory=list)  # of its leading full blocks


class BlockManager:
    """The blocks of a device, and of the host memory that sequences are swapped to."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_host_blocks: int = 0,
        prefix_cache: bool,
        window: int | None = None,
    ) -> None:
        """`window`: how many tokens one sees, itself included; None: all before it."""
        self.num_blocks, self.block_size = num_blocks, block_size
        self._window = window
        self._prefix_cache = prefix_cache
        self._holders = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))  # the next to be used first
        self._digests: dict[int, bytes] = {}  # of findable blocks
        self._found: dict[bytes, int] = {}
        self._free_host = list(range(num_host_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def most_at_once(self, num_tokens: int, chunk: int) -> int:
        """Blocks that a sequence of `num_tokens` holds at most, computed by `chunk` tokens."""
        if self._window is None:
            return self.blocks_for(num_tokens)
        # a window and a chunk may begin in the middle of a block
        return min(self.blocks_for(num_tokens), self.blocks_for(self._window - 1 + chunk) + 1)

    def open(self, tokens: Sequence[int]) -> Table:
        """Return a table of as many leading blocks of `tokens` as are cached.

        It holds those that the tokens behind them see. At least one token is left to be computed,
        because its logits are wanted.
        """
        table = Table()
        if not self._prefix_cache:
            return table
        found: list[int] = []
        usable = run = 0  # blocks that can be left out; successive ones found up to here
        for index in range((len(tokens) - 1) // self.block_size):
            digest = self._digest(table, tokens, index)
            block = self._found.get(digest)
            if block is None and self._window is None:
                break
            table.digests.append(digest)
            found.append(GONE if block is None else block)
            run = 0 if block is None else run + 1
            if index + 1 - run <= self._first_seen((index + 1) * self.block_size):
                usable = index + 1
        table.num_tokens = usable * self.block_size
        table.num_gone = self._first_seen(table.num_tokens)
        table.blocks = [GONE] * table.num_gone + found[table.num_gone : usable]
        del table.digests[usable:]
        for block in table.blocks[table.num_gone :]:
            self._hold(block)
        return table

    def slide(self, table: Table, position: int) -> None:
        """Give back the blocks that no token from `position` on sees."""
        first = self._first_seen(position)
        for index in range(table.num_gone, first):
            self._give_back(table.blocks[index])
            table.blocks[index] = GONE
        table.num_gone = max(table.num_gone, first)

    def missing(self, table: Table, num_tokens: int) -> int:
        """How many free blocks it takes to make room for `num_tokens` tokens in all."""
        new = max(self.blocks_for(num_tokens) - len(table.blocks), 0)
        return new + (num_tokens > table.num_tokens and self._last_is_shared(table))

    def grow(self, table: Table, num_tokens: int) -> list[Operation]:
        """Make room for `num_tokens` tokens in all; there must be enough free blocks.

        The operations are to be done before anything is written.
        """
        assert self.missing(table, num_tokens) <= self.num_free
        operations = []
        if num_tokens > table.num_tokens and self._last_is_shared(table):
            shared = table.blocks[-1]
            own = self._take()
            self._give_back(shared)
            table.blocks[-1] = own
            operations.append(Operation(kind="copy", source=shared, target=own))
        while len(table.blocks) * self.block_size < num_tokens:
            table.blocks.append(self._take())
        table.num_tokens = max(num_tokens, table.num_tokens)
        return operations

    def remember(self, table: Table, tokens: Sequence[int], num_written: int) -> None:
        """Make the blocks findable that are full once `num_written` tokens are written."""
        if not self._prefix_cache:
            return
        for index in range(len(table.digests), num_written // self.block_size):
            digest = self._digest(table, tokens, index)
            table.digests.append(digest)
            block = table.blocks[index]
            if block != GONE and digest not in self._found and block not in self._digests:
                self._found[digest] = block
                self._digests[block] = digest

    def fork(self, table: Table) -> Table:
        """Return another table of the same blocks."""
        for block in table.blocks[table.num_gone :]:
            self._hold(block)
        return replace(table, blocks=list(table.blocks), digests=list(table.digests))

    def free(self, table: Table) -> None:
        """Give all blocks back. The last ones go first, so that common beginnings stay longest."""
        for block in reversed(table.blocks[table.num_gone :]):
            self._give_back(block)
        table.blocks, table.digests, table.num_tokens, table.num_gone = [], [], 0, 0

    def swap_out(self, table: Table) -> tuple[list[int], list[Operation]] | None:
        """Move a sequence to the host; None when there is no room. Returns its blocks there."""
        held = table.blocks[table.num_gone :]
        if len(held) > len(self._free_host):
            return None
        host = [self._free_host.pop() for _ in held]
        operations = [
            Operation(kind="out", source=block, target=there)
            for block, there in zip(held, host, strict=True)
        ]
        self.free(table)
        return host, operations

    def swap_in(self, host: list[int], num_tokens: int) -> tuple[Table, list[Operation]]:
        """Bring a sequence of `num_tokens` tokens back; there must be enough free blocks."""
        own = [self._take() for _ in host]
        num_gone = self.blocks_for(num_tokens) - len(host)
        table = Table(blocks=[GONE] * num_gone + own, num_tokens=num_tokens, num_gone=num_gone)
        operations = [
            Operation(kind="in", source=there, target=block)
            for there, block in zip(host, own, strict=True)
        ]
        self.free_host(host)
        return table, operations

    def free_host(self, host: list[int]) -> None:
        self._free_host.extend(host)

    def check(self, tables: Sequence[Table]) -> None:
        """Assert that the books agree with the tables of all living sequences."""
        held = [0] * self.num_blocks
        for table in tables:
            assert len(table.blocks) == self.blocks_for(table.num_tokens), table
            own = table.blocks[table.num_gone :]
            assert len(set(own)) == len(own) and GONE not in own, table
            assert set(table.blocks[: table.num_gone]) <= {GONE}, table
            for block in own:
                held[block] += 1
        assert held == self._holders
        assert {block for block, count in enumerate(held) if count == 0} == set(self._free)
        assert {block: digest for digest, block in self._found.items()} == self._digests

    def _first_seen(self, position: int) -> int:
        """Return the first block that the token at `position` sees."""
        if self._window is None:
            return 0
        return max(position - self._window + 1, 0) // self.block_size

    def _last_is_shared(self, table: Table) -> bool:
        """Whether the next token would be written to a block that others hold too."""
        partly = table.num_tokens % self.block_size != 0
        return partly and self._holders[table.blocks[-1]] > 1

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        assert self._holders[block] == 0
        self._holders[block] = 1
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._found[digest]
        return block

    def _hold(self, block: int) -> None:
        if self._holders[block] == 0:
            del self._free[block]
        self._holders[block] += 1

    def _give_back(self, block: int) -> None:
        assert self._holders[block] > 0, f"block {block} is free already"
        self._holders[block] -= 1
        if self._holders[block] == 0:
            self._free[block] = None
            if block not in self._digests:  # nothing to find: used again before those with content
                self._free.move_to_end(block, last=False)

    def _digest(self, table: Table, tokens: Sequence[int], index: int) -> bytes:
        """Return the digest of all tokens up to the end of block `index`.

        Cryptographic, since one collision would answer a request with another one's text.
        """
        before = table.digests[index - 1] if index else b""
        own = tokens[index * self.block_size : (index + 1) * self.block_size]
        return hashlib.blake2b(
            before + np.asarray(own, np.int64).tobytes(), digest_size=16
        ).digest()
