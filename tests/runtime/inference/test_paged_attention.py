"""Attention over blocks is attention over the tokens in them, wherever they lie."""

import math
from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks
from torch import Tensor
from torch.nn import functional as F

from parctl.runtime.inference.batch import Batch, Chunk
from parctl.runtime.inference.block_manager import Operation
from parctl.runtime.inference.cache import Cache, LayerCache
from parctl.runtime.inference.inputs import Paging, make_inputs, own_part, spans
from parctl.runtime.inference.paged_attention import LocalMix, PagedKernel, Step
from parctl.runtime.model.sequence import SequencePart

NUM_BLOCKS, BLOCK, WIDTH = 40, 4, 8
# tokens that are there before, and new ones: three that generate, two prompts, one that goes on
SEQUENCES = ((3, 1), (30, 1), (12, 1), (0, 9), (0, 2), (17, 6))


def make_batch(draw: torch.Generator) -> Batch:
    """Sequences in blocks that lie anywhere."""
    free = torch.randperm(NUM_BLOCKS, generator=draw).tolist()
    chunks = []
    order = sorted(SEQUENCES, key=lambda one: (one[1] > 1, one[0] if one[1] == 1 else 0))
    for before, new in order:
        count = -(-(before + new) // BLOCK)
        blocks, free = tuple(free[:count]), free[count:]
        chunks.append(Chunk(tokens=(0,) * new, start=before, blocks=blocks))
    return Batch(operations=(), chunks=chunks, rows=(), chunk_of_row=())


def compare(
    query_heads: int, key_heads: int, dtype: torch.dtype, window: int | None = None
) -> float:
    """The largest difference from attention of each sequence alone. In a fork."""
    draw = torch.Generator().manual_seed(0)
    batch = make_batch(draw)
    paging = Paging(num_blocks=NUM_BLOCKS, block_size=BLOCK, num_heads=key_heads)
    cpu = torch.device("cpu")
    cache = LayerCache(
        NUM_BLOCKS + 1, BLOCK, key_heads, WIDTH, shared=False, dtype=dtype, device=cpu
    )
    step = Step()
    step.inputs = inputs = make_inputs(
        batch, paging, multiple=4, dtype=dtype, device=cpu, windows=(window,)
    )
    num_tokens = len(inputs.tokens_T)
    assert num_tokens == 20 and batch.num_tokens == 20

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    q, k, v = random(1, 20, query_heads, WIDTH), *(random(1, 20, key_heads, WIDTH) for _ in "kv")
    expected, place = [], 0
    for chunk in batch.chunks:
        old_k, old_v = (random(chunk.start, key_heads, WIDTH) for _ in "kv")
        slots = paging.slots(chunk.blocks, torch.arange(chunk.start).numpy())
        cache.write(torch.from_numpy(paging.rows_to_write(slots)), old_k, old_v)
        new = slice(place, place + len(chunk.tokens))
        keys, values = torch.cat((old_k, k[0, new])), torch.cat((old_v, v[0, new]))
        seen = torch.ones(len(chunk.tokens), len(keys), dtype=torch.bool).tril(chunk.start)
        if window is not None:
            seen = seen.triu(chunk.start - window + 1)
        repeat = query_heads // key_heads
        expected.append(
            F.scaled_dot_product_attention(
                q[0, new].transpose(0, 1).double(),
                keys.transpose(0, 1).repeat_interleave(repeat, dim=0).double(),
                values.transpose(0, 1).repeat_interleave(repeat, dim=0).double(),
                attn_mask=seen,
            ).transpose(0, 1)
        )
        place = new.stop
    out = PagedKernel(LocalMix(cache, step, window))(q, k, v, None, dropout=0.0)
    return float((out[0].double() - torch.cat(expected)).abs().max())


@pytest.mark.parametrize(("query_heads", "key_heads"), [(4, 4), (8, 2), (6, 1)])
def test_blocks_anywhere_give_what_the_tokens_in_order_give(
    query_heads: int, key_heads: int, tmp_path: Path
) -> None:
    (exact,) = run_ranks(compare, 1, tmp_path, query_heads, key_heads, torch.float64)
    (half,) = run_ranks(compare, 1, tmp_path, query_heads, key_heads, torch.bfloat16)
    assert exact < 1e-14
    assert half < 0.03  # three significant digits


@pytest.mark.parametrize("window", [1, 3, 5, 8, 100])
def test_a_window_leaves_the_last_tokens(window: int, tmp_path: Path) -> None:
    # chunks of 6 and 9 tokens are longer than some of these windows
    (exact,) = run_ranks(compare, 1, tmp_path, 8, 2, torch.float64, window)
    assert exact < 1e-14


def test_only_blocks_that_the_window_reaches_are_read() -> None:
    paging = Paging(num_blocks=NUM_BLOCKS, block_size=4, num_heads=2)
    blocks = tuple(range(10, 19))
    # the token at 31 sees 27 to 31, in the blocks of 24 to 27 and of 28 to 31
    single = Chunk(tokens=(0,), start=31, blocks=blocks)
    # of what is before them, the tokens from 33 on see 29 to 32
    several = Chunk(tokens=(0,) * 3, start=33, blocks=blocks)
    batch = Batch(operations=(), chunks=[single, several], rows=(), chunk_of_row=())
    inputs = make_inputs(
        batch, paging, multiple=1, dtype=torch.float32, device=torch.device("cpu"), windows=(5,)
    )
    view = inputs.views[5]
    assert view.reads[0].rows_RKM.tolist() == [[[32, 34], [33, 35]]]  # blocks 16 and 17, by head
    bias = view.reads[0].bias_RL
    assert bias is not None
    assert bias.tolist() == [[-math.inf] * 3 + [0.0] * 5]
    assert view.fresh[0].rows_1KM.tolist() == [[[34, 36], [35, 37]]]
    visible = view.fresh[0].visible_TL
    assert visible is not None
    assert visible.tolist() == [
        [False, True, True, True, True],
        [False, False, True, True, True],
        [False, False, False, True, True],
    ]


def test_each_cp_rank_holds_the_next_part_of_every_block() -> None:
    ranks = [
        Paging(num_blocks=9, block_size=2, num_heads=1, cp_rank=rank, cp_size=2) for rank in (0, 1)
    ]
    positions = torch.arange(7).numpy()
    # blocks 5 and 3 hold four tokens each: two here, two there; block 9 is nobody's
    assert ranks[0].slots((5, 3), positions).tolist()[:2] == [10, 11]
    assert [int(slot) // 2 for slot in ranks[0].slots((5, 3), positions)] == [5, 5, 9, 9, 3, 3, 9]
    assert [int(slot) // 2 for slot in ranks[1].slots((5, 3), positions)] == [9, 9, 5, 5, 9, 9, 3]
    assert [rank.own_length(7) for rank in ranks] == [4, 3]


def test_sequences_of_like_length_are_read_together() -> None:
    assert spans([]) == []
    assert spans([5, 40, 60, 64]) == [(0, 4)]
    assert spans([5, 65, 130, 131, 400]) == [(0, 1), (1, 3), (3, 4), (4, 5)]


def wanted_rows() -> list[tuple[list[int], list[bool]]]:
    """Which of a step's tokens are sampled from, as each of two cp ranks counts them."""
    chunks = [
        Chunk(tokens=(0,) * 3, start=0, blocks=(0,)),
        Chunk(tokens=(0,) * 5, start=0, blocks=(1, 2)),
    ]
    batch = Batch(operations=(), chunks=chunks, rows=(), chunk_of_row=(0, 1))
    paging = Paging(num_blocks=NUM_BLOCKS, block_size=2, num_heads=1, cp_size=2)
    whole = make_inputs(batch, paging, multiple=4, dtype=torch.float32, device=torch.device("cpu"))
    found = []
    for rank in (0, 1):
        own = own_part(whole, SequencePart(index=rank, count=2, zigzag=True))
        assert own.held_R is not None
        found.append((own.last_R.tolist(), own.held_R.tolist()))
    return found


def test_a_row_is_taken_from_the_rank_that_has_its_token(tmp_path: Path) -> None:
    # tokens 0 1 | 2 3 | 4 5 | 6 7: the first rank has 0 1 6 7, the second 2 3 4 5; wanted 2 and 7
    ((first, second),) = run_ranks(wanted_rows, 1, tmp_path)
    assert [held for _, held in (first, second)] == [[False, True], [True, False]]
    assert (first[0][1], second[0][0]) == (3, 0)


def swapped_blocks() -> list[list[float]]:
    cpu = torch.device("cpu")
    layer = LayerCache(4, 2, 1, 1, shared=True, dtype=torch.float64, device=cpu)
    layer.write(
        torch.arange(6).unsqueeze(1), torch.arange(6.0).double().view(6, 1, 1), torch.empty(0)
    )
    cache = Cache([layer], num_host_blocks=2)
    cache.do(
        [
            Operation(kind="out", source=0, target=1),
            Operation(kind="copy", source=1, target=0),
            Operation(kind="in", source=1, target=3),
        ]
    )
    return [block.flatten().tolist() for block in layer.keys]


def test_blocks_are_copied_in_the_given_order(tmp_path: Path) -> None:
    (blocks,) = run_ranks(swapped_blocks, 1, tmp_path)
    assert blocks == [[2.0, 3.0], [2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]


def latents() -> float:
    """Latent attention mixes one key for all heads, at a scale of its own."""
    draw = torch.Generator().manual_seed(1)
    cpu = torch.device("cpu")
    cache = LayerCache(9, 4, 1, 6, shared=True, dtype=torch.float64, device=cpu)
    batch = Batch(
        operations=(),
        chunks=[Chunk(tokens=(0,) * 7, start=0, blocks=(3, 1))],
        rows=(),
        chunk_of_row=(),
    )
    step = Step()
    step.inputs = make_inputs(
        batch,
        Paging(num_blocks=8, block_size=4, num_heads=1),
        multiple=1,
        dtype=torch.float64,
        device=cpu,
    )
    q = torch.randn(1, 7, 3, 6, generator=draw, dtype=torch.float64)
    k = torch.randn(1, 7, 6, generator=draw, dtype=torch.float64)
    out = PagedKernel(LocalMix(cache, step)).mix_latents(q, k, 0.25)
    scores = torch.einsum("snc,tc->nst", q[0], k[0]) * 0.25
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf)
    expected = torch.einsum("nst,tc->snc", scores.softmax(dim=-1), k[0])
    return float((out[0] - expected).abs().max())


def test_latents_are_key_and_value_of_all_heads(tmp_path: Path) -> None:
    (difference,) = run_ranks(latents, 1, tmp_path)
    assert difference < 1e-14
