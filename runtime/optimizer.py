"""AdamW (1711.05101) with warm-up, cosine decay and clipping by the global gradient norm.

Weight decay applies to matrices, not to norms and biases. Everything works on local parts, so it
does not care on how many meshes the parameters live, and on tensors that stay on the device: the
host need not know the norm for a step to be clipped, or left out because its norm is not finite.

With `offload_optimizer` (2101.06840) the moments live in host memory and are updated there:
gradients go down, changes of the weights come up.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from parctl.recipes.spec import OptimizerSpec
from parctl.runtime.execution.offload import OnHost, to_device, to_host, wait_for_copies
from parctl.runtime.model.linear import local
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.operator_parallel import is_of_a_branch

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """AdamW over local parts: DTensors of several meshes in one fused update, and no dispatch."""

    on_host = False

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.update(skip=None)

    @torch.no_grad()
    def update(self, *, skip: Tensor | None) -> None:
        """Make one step. `skip`, a scalar on the device: nothing changes where it is not 0."""
        for group in self.param_groups:
            owners = [owner for owner in group["params"] if local(owner).numel() > 0]
            weights = [local(owner) for owner in owners]
            gradients = [local(owner.grad) for owner in owners]
            moments = [[local(self.state[owner][name]) for owner in owners] for name in MOMENTS]
            steps = [self.state[owner]["step"] for owner in owners]
            if not self.on_host:
                fused_update(group, weights, gradients, moments, steps, skip)
            elif skip is None or not bool(skip):
                update_on_host(group, weights, gradients, moments, steps)


def fused_update(
    group: Mapping[str, Any],
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: list[list[Tensor]],
    steps: list[Tensor],
    skip: Tensor | None,
) -> None:
    means, squares = moments
    adamw(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        fused=True,
        found_inf=skip,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def update_on_host(
    group: Mapping[str, Any],
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: list[list[Tensor]],
    steps: list[Tensor],
) -> None:
    """Let the host work out the changes, from weights of 0 without decay; the rest is here."""
    if not weights:
        return
    sent = [to_host(gradient) for gradient in gradients]
    wait_for_copies(weights[0].device)
    changes = [torch.zeros_like(there.tensor) for there in sent]
    without_decay = {**group, "weight_decay": 0.0}
    fused_update(without_decay, changes, [there.tensor for there in sent], moments, steps, None)
    for weight, there, change in zip(weights, sent, changes, strict=True):
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(to_device(OnHost(tensor=change, device=there.device)))


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], spec: OptimizerSpec, *, on_host: bool = False
) -> AdamW:
    """Return AdamW with its state there (zeros), so that a checkpoint can be read into it."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters.values():
        groups.setdefault(parameter.dim() >= 2, []).append(parameter)
    optimizer = AdamW(
        [
            {"params": group, "weight_decay": spec.weight_decay if decayed else 0.0}
            for decayed, group in groups.items()
        ],
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        fused=True,
    )
    optimizer.on_host = on_host
    for parameter in parameters.values():
        place = torch.device("cpu") if on_host else parameter.device
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=place),
            **{moment: zeros_like(parameter, place) for moment in MOMENTS},
        }
    return optimizer


def zeros_like(parameter: nn.Parameter, place: torch.device) -> Tensor:
    """Zeros with the shape and mesh of a parameter, and their memory in `place`."""
    zeros = torch.zeros_like(local(parameter), device=place, requires_grad=False)
    if not isinstance(parameter, DTensor):
        return zeros
    # `from_local` would move them to the mesh's device
    return DTensor(zeros, parameter._spec, requires_grad=False)  # type: ignore[no-untyped-call]


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
    by_holders: dict[int, list[Tensor]] = {}
    for name, norm in zip(names, norms, strict=True):
        by_holders.setdefault(num_holders(name, parameters[name], mesh), []).append(norm)
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for holders, same in by_holders.items():
        total += torch.stack(same).double().square().sum() / holders
    return total


def num_holders(name: str, parameter: Tensor, mesh: RankMesh) -> int:
    """How many ranks of the world hold this part of the parameter."""
    holders = mesh.devices.size() // mesh.sizes["pp"]
    if is_of_a_branch(name):
        holders //= mesh.sizes["operator"]
    if isinstance(parameter, DTensor):
        for axis, placement in enumerate(parameter.placements):
            if not placement.is_replicate():
                holders //= parameter.device_mesh.size(axis)
    return holders


def clip(gradients: Mapping[str, Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale the gradients down in place to a global norm of at most `max_norm`; 0 means never.

    `norm` is a scalar on the device, and nobody waits for it.
    """
    if max_norm > 0:
        torch._foreach_mul_(list(gradients.values()), (max_norm / norm).clamp(max=1.0))
