"""Random work for the block manager, its books checked against every table as it goes.

    python -m tests.runtime.inference.block_operations [--count 1000000] [--seed 0] [--window 6]

Sequences over two tokens, so that beginnings are common, are opened, grown, forked, swapped out
and in, and freed. What each place of the device's and the host's memory holds is kept beside it:
after every operation the sequence concerned must find its own tokens there, and no other's: all of
them, or with a window those that its next token sees.
"""

import argparse
import random
import time
from dataclasses import dataclass, field

from parctl.runtime.inference.block_manager import BlockManager, Operation, Table

NUM_BLOCKS, BLOCK, NUM_HOST_BLOCKS = 32, 4, 16
CHECK_EVERY = 50  # all books; each costs as much as many operations


@dataclass
class Living:
    tokens: list[int]
    table: Table = field(default_factory=Table)
    host: list[int] | None = None


class Memory:
    """What lies where: in place of keys and values, the tokens up to there, all of them."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.device: dict[tuple[int, int], tuple[int, ...]] = {}
        self.host: dict[tuple[int, int], tuple[int, ...]] = {}

    def do(self, operations: list[Operation]) -> None:
        for one in operations:
            source = self.host if one.kind == "in" else self.device
            target = self.host if one.kind == "out" else self.device
            for place in range(BLOCK):
                target[one.target, place] = source.get((one.source, place), ())

    def write(self, living: Living, first: int) -> None:
        for position in range(first, len(living.tokens)):
            block = living.table.blocks[position // BLOCK]
            self.device[block, position % BLOCK] = tuple(living.tokens[: position + 1])

    def check(self, living: Living) -> None:
        first = 0 if self.window is None else max(len(living.tokens) - self.window + 1, 0)
        for position in range(first, len(living.tokens)):
            block = living.table.blocks[position // BLOCK]
            found = self.device[block, position % BLOCK]
            assert found == tuple(living.tokens[: position + 1]), (position, found, living)


class Walk:
    """Random operations on one manager."""

    def __init__(self, seed: int, window: int | None) -> None:
        self.draw = random.Random(seed)
        self.manager = BlockManager(
            NUM_BLOCKS, BLOCK, num_host_blocks=NUM_HOST_BLOCKS, prefix_cache=True, window=window
        )
        self.memory, self.living = Memory(window), list[Living]()
        self.num_found = 0  # tokens that the prefix cache had

    def step(self) -> None:
        kinds = ("open", "open", "append", "append", "fork", "free", "free", "swap")
        getattr(self, self.draw.choice(kinds))()

    def open(self) -> None:
        tokens = [self.draw.randrange(2) for _ in range(self.draw.randint(1, 14))]
        living = Living(tokens=tokens, table=self.manager.open(tokens))
        found = living.table.num_tokens
        if self.manager.missing(living.table, len(tokens)) > self.manager.num_free:
            self.manager.free(living.table)
            return
        self.memory.check(Living(tokens=tokens[:found], table=living.table))
        self.num_found += found
        self.extend(living, found)
        self.living.append(living)

    def append(self) -> None:
        living = self.pick()
        if living is None or len(living.tokens) >= 30:
            return
        new = [self.draw.randrange(2) for _ in range(self.draw.randint(1, 3))]
        first = len(living.tokens)
        if self.manager.missing(living.table, first + len(new)) <= self.manager.num_free:
            living.tokens += new
            self.extend(living, first)

    def extend(self, living: Living, first: int) -> None:
        self.manager.slide(living.table, first)
        self.memory.do(self.manager.grow(living.table, len(living.tokens)))
        self.memory.write(living, first)
        self.manager.remember(living.table, living.tokens, len(living.tokens))
        self.memory.check(living)

    def fork(self) -> None:
        living = self.pick()
        if living is not None and len(self.living) < 12:
            other = Living(tokens=list(living.tokens), table=self.manager.fork(living.table))
            self.living.append(other)

    def free(self) -> None:
        if self.living:
            living = self.living.pop(self.draw.randrange(len(self.living)))
            if living.host is None:
                self.memory.check(living)
                self.manager.free(living.table)
            else:
                self.manager.free_host(living.host)

    def swap(self) -> None:
        away = [living for living in self.living if living.host is not None]
        if away and self.draw.random() < 0.7:
            living = self.draw.choice(away)
            assert living.host is not None
            if len(living.host) <= self.manager.num_free:
                table, operations = self.manager.swap_in(living.host, len(living.tokens))
                living.table, living.host = table, None
                self.memory.do(operations)
                self.memory.check(living)
        elif (chosen := self.pick()) is not None:
            swapped = self.manager.swap_out(chosen.table)
            if swapped is not None:
                chosen.host, operations = swapped
                self.memory.do(operations)

    def pick(self) -> Living | None:
        here = [living for living in self.living if living.host is None]
        return self.draw.choice(here) if here else None

    def check(self) -> None:
        self.manager.check([living.table for living in self.living])
        for living in self.living:
            if living.host is None:
                self.memory.check(living)


def walk(count: int, seed: int, window: int | None = None) -> Walk:
    """Do `count` operations, then free everything. Raises AssertionError at the first fault."""
    made = Walk(seed, window)
    for index in range(count):
        made.step()
        if index % CHECK_EVERY == 0:
            made.check()
    made.check()
    while made.living:
        made.free()
    made.check()
    assert made.manager.num_free == NUM_BLOCKS
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=int, help="tokens that one sees; default all")
    options = parser.parse_args()
    begin = time.monotonic()
    made = walk(options.count, options.seed, options.window)
    seconds = time.monotonic() - begin
    print(
        f"{options.count:,} operations, {made.num_found:,} tokens found in the cache, "
        f"no leak and no double use, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
