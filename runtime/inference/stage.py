"""This rank's part of the model, made for inference.

The same modules as in training, split by the same functions, under the same names; only attention
has another kernel, and logits are made for the tokens that are sampled from. Nothing is wrapped for
data parallelism or recomputation, and there are no gradients.

Shapes: T tokens of a step, S of them on this rank, R rows to sample from, D dim, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parctl.recipes.spec import ModelSpec, ParallelismSpec
from parctl.runtime.inference.cache import Cache, LayerCache
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.context_attention import ContextMix
from parctl.runtime.inference.inputs import Paging
from parctl.runtime.inference.paged_attention import LocalMix, Mix, PagedKernel, Step
from parctl.runtime.inference.place import Place
from parctl.runtime.model.attention import Attention
from parctl.runtime.model.latent_attention import LatentAttention
from parctl.runtime.model.linear import Exchange, local
from parctl.runtime.model.sequence import SequencePart
from parctl.runtime.model.transformer import Block, Part, Transformer
from parctl.runtime.parallel import expert_parallel, tensor_parallel
from parctl.runtime.parallel.collectives import all_reduce
from parctl.runtime.parallel.context_parallel import sequence_part
from parctl.runtime.parallel.mesh import RankMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage with its memory. `multiple`: tokens of a step are padded to a multiple of it."""

    model: Transformer
    cache: Cache
    step: Step
    paging: Paging
    dtype: torch.dtype
    multiple: int
    windows: tuple[int | None, ...]  # that its layers have
    part: SequencePart | None  # of a step with prompts, under context parallelism

    def parameters(self) -> dict[str, Tensor]:
        """Return what weights are read into, by canonical name: routers' biases too."""
        named = dict(self.model.named_parameters())
        for name, moe in expert_parallel.experts_of(self.model):
            if moe.router.bias is not None:
                named[f"{name}.router.bias"] = moe.router.bias  # type: ignore[assignment]
        return dict(named)


def for_inference(model: ModelSpec) -> ModelSpec:
    """Leave out what exists for training only: further predictions, dropped tokens, balance."""
    moe = model.moe
    if moe is not None:
        moe = replace(moe, capacity_factor=None, aux_loss=0.0, z_loss=0.0, bias_rate=0.0)
    return replace(model, num_mtp_layers=0, moe=moe, dropout=0.0)


def build_stage(
    model: ModelSpec,
    parallelism: ParallelismSpec | None,
    config: EngineConfig,
    place: Place,
    mesh: RankMesh | None,
    layers: Sequence[int],
    dtype: torch.dtype,
) -> Stage:
    """Build the stage with these layers, without weights. A rank alone needs no mesh."""
    model = for_inference(model)
    part = Part(
        layers=tuple(layers), first=place.stage == 0, last=place.stage == place.num_stages - 1
    )
    with torch.device("meta"):
        transformer = Transformer(model, part).to(dtype)
    for _, moe in expert_parallel.experts_of(transformer):
        if moe.router.bias is not None:  # rounded to half a type it would choose other experts
            moe.router.bias = moe.router.bias.to(torch.promote_types(dtype, torch.float32))
    part_of_step = None
    if mesh is not None:
        assert parallelism is not None
        if mesh.cp is not None:
            part_of_step = sequence_part(mesh.cp, parallelism)
        expert_parallel.apply(transformer, parallelism, mesh)
        tp = mesh.axis("tp")
        if tp is not None:
            tensor_parallel.apply(transformer, tp, sequence_parallel=parallelism.sp)
    transformer.to_empty(device=place.device)
    transformer.tie()
    transformer.eval().requires_grad_(False)
    expert_parallel.reset(transformer)
    # over tp, evenly: tokens by SP, and where experts are not split over tp
    deals_out = model.moe is not None or (parallelism is not None and parallelism.sp)
    step = Step()
    windows = [model.window(layer) for layer in layers]
    cache = Cache(
        [
            page(block, window, step, config, place, part_of_step, dtype)
            for block, window in zip(transformer.all_blocks(), windows, strict=True)
        ],
        config.num_host_blocks,
    )
    paging = Paging(
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_heads=cache.layers[0].num_heads,  # all layers have as many
        cp_rank=0 if place.cp is None else place.cp.rank(),
        cp_size=1 if place.cp is None else place.cp.size(),
    )
    transformer.sequence = step
    transformer.kernel = PagedKernel(no_mix)
    transformer.enter_head = Rows(step, transformer.enter_head, place.cp)
    return Stage(
        model=transformer,
        cache=cache,
        step=step,
        paging=paging,
        dtype=dtype,
        multiple=1 if place.tp is None or not deals_out else place.tp.size(),
        windows=tuple(dict.fromkeys(windows)),
        part=part_of_step,
    )


def page(
    block: nn.Module,
    window: int | None,
    step: Step,
    config: EngineConfig,
    place: Place,
    part: SequencePart | None,
    dtype: torch.dtype,
) -> LayerCache:
    """Give a block's attention its memory, and return that."""
    assert isinstance(block, Block)
    attention = block.attention
    if isinstance(attention, LatentAttention):
        heads, width = 1, attention.mla.kv_lora_rank + attention.mla.qk_rope_head_dim
    else:
        assert isinstance(attention, Attention)
        heads, width = num_heads(attention), attention.head_dim
    cache = LayerCache(
        config.num_blocks + 1,
        config.block_size,
        heads,
        width,
        shared=isinstance(attention, LatentAttention),
        dtype=dtype,
        device=place.device,
    )
    mix: Mix = LocalMix(cache, step, window)
    if place.cp is not None:
        assert part is not None
        kind: Literal["ring", "ulysses"] = "ring" if part.zigzag else "ulysses"
        mix = ContextMix(cache, step, place.cp, kind, window)
    attention.kernel = PagedKernel(mix)
    if isinstance(attention, LatentAttention):
        attention.latent_kernel = attention.kernel
    return cache


def num_heads(attention: Attention) -> int:
    """Key/value heads of this rank: with fewer of them than tp ranks, one that others have too."""
    rows = local(attention.wk.weight).shape[0]
    if attention.wk.rows is not None:
        rows = attention.wk.rows.stop - attention.wk.rows.start
    return rows // attention.head_dim


def no_mix(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
    raise AssertionError("each layer has a kernel of its own")


class Rows:
    """What stands before the head: only the rows that are sampled from go on, `[1, R, D]`."""

    def __init__(self, step: Step, enter: Exchange, cp: dist.ProcessGroup | None) -> None:
        self._step, self._enter, self._cp = step, enter, cp

    def __call__(self, h_BSD: Tensor) -> Tensor:
        inputs = self._step.inputs
        rows_BRD = self._enter(h_BSD)[:, inputs.last_R]
        if inputs.held_R is None or len(inputs.held_R) == 0:
            return rows_BRD
        assert self._cp is not None  # one rank has the row, the others add nothing
        return all_reduce(rows_BRD.masked_fill(~inputs.held_R.unsqueeze(-1), 0), self._cp)


def whole_logits(logits_RV: Tensor, vocab_size: int, tp: dist.ProcessGroup | None) -> Tensor:
    """Gather the parts of the vocabulary, which are of equal size but for the last ones."""
    if tp is None:
        return logits_RV
    size = -(-vocab_size // tp.size())
    padded = logits_RV.new_zeros(logits_RV.shape[0], size)
    padded[:, : logits_RV.shape[1]] = logits_RV
    parts = [torch.empty_like(padded) for _ in range(tp.size())]
    dist.all_gather(parts, padded, group=tp)
    return torch.cat(parts, dim=1)[:, :vocab_size]
