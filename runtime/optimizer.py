"""AdamW (1711.05101) with warm-up, cosine decay and clipping by the global gradient norm.

Weight decay applies to matrices, not to norms and biases. Clipping works on local parts, so it does
not care on how many meshes the parameters live.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parctl.recipes.spec import OptimizerSpec
from parctl.runtime.mesh import RankMesh

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], spec: OptimizerSpec
) -> torch.optim.AdamW:
    """Return AdamW with its state there (zeros), so that a checkpoint can be read into it."""
    decayed = [parameter for parameter in parameters.values() if parameter.dim() >= 2]
    plain = [parameter for parameter in parameters.values() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": spec.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        fused=True,
    )
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
        }
    return optimizer


def set_step(optimizer: torch.optim.AdamW, step: int) -> None:
    """Tell the optimizer how many steps lie behind it."""
    for state in optimizer.state.values():
        state["step"].fill_(step)


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Rate of `step` (the first is 1): linear up to `lr`, a cosine to `min_lr` at the last step."""
    if step < spec.warmup_steps:
        return spec.lr * step / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.min_lr + (spec.lr - spec.min_lr) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, progress))
    )


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def own_gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return this rank's part of every gradient."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        assert gradient is not None, name
        if isinstance(gradient, DTensor):
            assert isinstance(parameter, DTensor)
            assert gradient.placements == parameter.placements, (name, gradient.placements)
            gradient = gradient.to_local()
        gradients[name] = gradient
    return gradients


def own_square_sum(
    parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor], mesh: RankMesh
) -> Tensor:
    """This rank's share of the squared gradient norm, in float64. All shares add up to it.

    A part that several ranks hold is divided among them.
    """
    names = [name for name, gradient in gradients.items() if gradient.numel() > 0]
    if not names:
        return torch.zeros((), dtype=torch.float64, device=mesh.device)
    norms = torch._foreach_norm([gradients[name] for name in names])
    shares = [1.0 / num_holders(parameters[name], mesh) for name in names]
    squares = torch.stack(list(norms)).double().square()
    return squares @ torch.tensor(shares, dtype=torch.float64, device=mesh.device)


def num_holders(parameter: Tensor, mesh: RankMesh) -> int:
    """How many ranks of the world hold this part of the parameter."""
    holders = mesh.devices.size() // mesh.sizes["pp"]
    if isinstance(parameter, DTensor):
        for axis, placement in enumerate(parameter.placements):
            if not placement.is_replicate():
                holders //= parameter.device_mesh.size(axis)
    return holders


def clip(gradients: Mapping[str, Tensor], norm: float, max_norm: float) -> None:
    """Scale the gradients down in place to a global norm of at most `max_norm`; 0 means never."""
    if 0 < max_norm < norm:
        torch._foreach_mul_(list(gradients.values()), max_norm / norm)
