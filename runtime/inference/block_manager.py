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
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


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
    digests: list[bytes] = field(default_factory=list)  # of its leading full blocks


class BlockManager:
    """The blocks of a device, and of the host memory that sequences are swapped to."""

    def __init__(
        self, num_blocks: int, block_size: int, *, num_host_blocks: int = 0, prefix_cache: bool
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
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

    def open(self, tokens: Sequence[int]) -> Table:
        """Return a table that holds as many leading blocks of `tokens` as are cached.

        At least one token is left to be computed, because its logits are wanted.
        """
        table = Table()
        if not self._prefix_cache:
            return table
        for index in range((len(tokens) - 1) // self.block_size):
            digest = self._digest(table, tokens, index)
            block = self._found.get(digest)
            if block is None:
                break
            self._hold(block)
            table.blocks.append(block)
            table.digests.append(digest)
        table.num_tokens = len(table.blocks) * self.block_size
        return table

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
            if digest not in self._found and block not in self._digests:
                self._found[digest] = block
                self._digests[block] = digest

    def fork(self, table: Table) -> Table:
        """Return another table of the same blocks."""
        for block in table.blocks:
            self._hold(block)
        return Table(
            blocks=list(table.blocks), num_tokens=table.num_tokens, digests=list(table.digests)
        )

    def free(self, table: Table) -> None:
        """Give all blocks back. The last ones go first, so that common beginnings stay longest."""
        for block in reversed(table.blocks):
            self._give_back(block)
        table.blocks, table.digests, table.num_tokens = [], [], 0

    def swap_out(self, table: Table) -> tuple[list[int], list[Operation]] | None:
        """Move a sequence to the host; None when there is no room. Returns its blocks there."""
        if len(table.blocks) > len(self._free_host):
            return None
        host = [self._free_host.pop() for _ in table.blocks]
        operations = [
            Operation(kind="out", source=block, target=there)
            for block, there in zip(table.blocks, host, strict=True)
        ]
        self.free(table)
        return host, operations

    def swap_in(self, host: list[int], num_tokens: int) -> tuple[Table, list[Operation]]:
        """Bring a sequence of `num_tokens` tokens back; there must be enough free blocks."""
        table = Table()
        self.grow(table, len(host) * self.block_size)
        table.num_tokens = num_tokens
        operations = [
            Operation(kind="in", source=there, target=block)
            for there, block in zip(host, table.blocks, strict=True)
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
            assert len(set(table.blocks)) == len(table.blocks), table
            for block in table.blocks:
                held[block] += 1
        assert held == self._holders
        assert {block for block, count in enumerate(held) if count == 0} == set(self._free)
        assert {block: digest for digest, block in self._found.items()} == self._digests

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
