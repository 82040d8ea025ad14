"""Blocks are shared, copied before a shared one is written, found again, and never lost."""

import pytest
from tests.runtime.inference.block_operations import walk

from parctl.runtime.inference.block_manager import GONE, BlockManager, Operation


def test_only_the_last_block_is_partly_empty() -> None:
    manager = BlockManager(10, 4, prefix_cache=False)
    table = manager.open(range(9))
    assert manager.missing(table, 9) == 3
    assert manager.grow(table, 9) == []
    assert (len(table.blocks), manager.num_free) == (3, 7)
    manager.grow(table, 12)
    assert manager.num_free == 7
    manager.grow(table, 13)
    assert manager.num_free == 6


def test_a_shared_block_is_copied_before_it_is_written() -> None:
    manager = BlockManager(10, 4, prefix_cache=False)
    first = manager.open(range(6))
    manager.grow(first, 6)
    assert first.blocks == [0, 1]
    second = manager.fork(first)
    assert manager.num_free == 8
    assert manager.missing(first, 7) == 1
    assert manager.grow(first, 7) == [Operation(kind="copy", source=1, target=2)]
    assert (first.blocks, second.blocks) == ([0, 2], [0, 1])
    # the other one is its only holder now
    assert manager.missing(second, 7) == 0
    assert manager.grow(second, 7) == []


def test_a_full_shared_block_is_not_copied() -> None:
    manager = BlockManager(10, 4, prefix_cache=False)
    first = manager.open(range(4))
    manager.grow(first, 4)
    manager.fork(first)
    assert manager.grow(first, 5) == []
    assert first.blocks == [0, 1]


def test_a_beginning_is_found_while_it_is_held_and_after() -> None:
    manager = BlockManager(10, 4, prefix_cache=True)
    first = manager.open(range(9))
    manager.grow(first, 9)
    manager.remember(first, range(9), 9)
    second = manager.open([*range(8), 50, 51])
    assert (second.blocks, second.num_tokens) == ([0, 1], 8)
    manager.free(first)
    manager.free(second)
    assert manager.num_free == 10
    third = manager.open([*range(4), 60, 61, 62, 63, 64])
    assert (third.blocks, third.num_tokens) == ([0], 4)
    assert manager.num_free == 9


def test_one_token_is_left_to_compute() -> None:
    manager = BlockManager(10, 4, prefix_cache=True)
    first = manager.open(range(8))
    manager.grow(first, 8)
    manager.remember(first, range(8), 8)
    assert manager.open(range(8)).num_tokens == 4


def test_the_same_block_behind_other_tokens_is_not_taken() -> None:
    manager = BlockManager(10, 4, prefix_cache=True)
    first = manager.open([0, 0, 0, 0, 7, 7, 7, 7, 1])
    manager.grow(first, 9)
    manager.remember(first, [0, 0, 0, 0, 7, 7, 7, 7, 1], 9)
    assert manager.open([9, 9, 9, 9, 7, 7, 7, 7, 1]).num_tokens == 0


def test_what_was_freed_first_is_forgotten_first_and_ends_before_beginnings() -> None:
    manager = BlockManager(4, 2, prefix_cache=True)
    for tokens in ([1, 1, 2, 2, 0], [3, 3, 0]):
        table = manager.open(tokens)
        manager.grow(table, len(tokens) - 1)
        manager.remember(table, tokens, len(tokens) - 1)
        manager.free(table)
    # of four blocks one was never used; it goes first, then [1, 1, 2, 2]'s end
    newcomer = manager.open([5, 5, 5, 5])
    manager.grow(newcomer, 4)
    assert manager.open([1, 1, 2, 2, 0]).num_tokens == 2
    assert manager.open([3, 3, 0]).num_tokens == 2


def test_swapping_needs_room_on_the_host() -> None:
    manager = BlockManager(8, 4, num_host_blocks=2, prefix_cache=False)
    long, short = manager.open(range(9)), manager.open(range(5))
    manager.grow(long, 9)
    manager.grow(short, 5)
    assert manager.swap_out(long) is None
    swapped = manager.swap_out(short)
    assert swapped is not None
    host, operations = swapped
    assert [(one.kind, one.source) for one in operations] == [("out", 3), ("out", 4)]
    assert manager.num_free == 5
    back, operations = manager.swap_in(host, 5)
    assert [(one.kind, one.target) for one in operations] == [
        ("in", block) for block in back.blocks
    ]
    assert (back.num_tokens, manager.num_free) == (5, 3)


def test_a_block_is_not_freed_twice() -> None:
    manager = BlockManager(8, 4, prefix_cache=False)
    table = manager.open([1])
    manager.grow(table, 1)
    blocks = list(table.blocks)
    manager.free(table)
    table.blocks = blocks
    with pytest.raises(AssertionError, match="free already"):
        manager.free(table)


def test_blocks_behind_the_window_are_given_back() -> None:
    manager = BlockManager(10, 4, prefix_cache=False, window=6)
    table = manager.open(range(12))
    manager.grow(table, 12)
    manager.slide(table, 8)  # the token at 8 sees 3 to 8, and 3 is in the first block
    assert (table.blocks, manager.num_free) == ([0, 1, 2], 7)
    manager.slide(table, 9)
    assert (table.blocks, manager.num_free) == ([GONE, 1, 2], 8)
    # one that goes on holds a window and a chunk, which may begin in the middle of a block
    assert manager.most_at_once(100, chunk=4) == 4
    assert manager.most_at_once(5, chunk=4) == 2
    manager.free(table)
    assert manager.num_free == 10


def test_with_a_window_a_beginning_is_found_by_its_end() -> None:
    manager = BlockManager(4, 4, prefix_cache=True, window=5)
    tokens = list(range(13))
    first = manager.open(tokens)
    for end in (4, 8, 12):
        manager.slide(first, end - 4)
        manager.grow(first, end)
        manager.remember(first, tokens, end)
    assert first.blocks == [GONE, 1, 2]
    # the token at 12 sees 8 to 12: of three blocks the last is enough
    second = manager.open(tokens)
    assert (second.blocks, second.num_tokens) == ([GONE, GONE, 2], 12)
    # behind two blocks the token at 8 sees 4 to 8
    third = manager.open([*range(8), 90, 91, 92, 93, 94])
    assert (third.blocks, third.num_tokens) == ([GONE, 1], 8)
    manager.check([first, second, third])


def test_with_a_window_a_beginning_whose_end_is_gone_is_not_found() -> None:
    manager = BlockManager(3, 4, prefix_cache=True, window=8)
    table = manager.open(range(12))
    manager.grow(table, 12)
    manager.remember(table, range(12), 12)
    manager.free(table)
    newcomer = manager.open([50])
    manager.grow(newcomer, 1)  # takes the last block of the three, which was freed first
    manager.free(newcomer)
    assert manager.open([*range(12), 99]).num_tokens == 8


def test_what_is_gone_is_not_swapped() -> None:
    manager = BlockManager(6, 4, num_host_blocks=2, prefix_cache=False, window=4)
    table = manager.open(range(15))
    manager.grow(table, 15)
    manager.slide(table, 12)
    assert table.blocks == [GONE, GONE, 2, 3]
    swapped = manager.swap_out(table)
    assert swapped is not None
    back, operations = manager.swap_in(swapped[0], 15)
    assert back.blocks[:2] == [GONE, GONE]
    assert [one.target for one in operations] == back.blocks[2:]
    manager.check([back])


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("seed", range(2))
def test_random_operations_lose_nothing_and_mix_nothing_up(seed: int, window: int | None) -> None:
    assert walk(5_000, seed, window).num_found > 1_000  # a million: this script by hand
