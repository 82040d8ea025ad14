"""The linear layer that tensor parallelism can split, and where a layer's exchanges happen.

Work that is split over tp begins with an `enter` and ends with a `leave`: functions that do nothing
on one device, and that `runtime.parallel.tensor_parallel` replaces by collectives.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parctl.runtime.model.product import product

Exchange = Callable[[Tensor], Tensor]


def nothing(x: Tensor) -> Tensor:
    """The exchange of a layer that is not split."""
    return x


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a parameter, which is a DTensor under tp.

    Its gradient stays this rank's part too.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Linear(nn.Linear):
    """`x W^T + b`, W whole, split by rows (outputs), or split by columns (inputs).

    In the last case `leave` adds up the parts. `rows` selects outputs of a weight that is whole on
    every rank. `multiply` is another way to make `x W^T` (`runtime.parallel.weight_gradients`).
    """

    rows: slice | None = None

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.leave: Exchange = nothing
        self.multiply: Callable[[Tensor, Tensor], Tensor] = product

    def forward(self, input: Tensor) -> Tensor:
        weight = local(self.weight)
        bias = None if self.bias is None else local(self.bias)
        if self.rows is not None:
            weight, bias = weight[self.rows], None if bias is None else bias[self.rows]
        if self.leave is nothing and self.multiply is product:
            return product(input, weight, bias)
        # the bias belongs to the sum, not to each part
        out = self.leave(self.multiply(input, weight))
        return out if bias is None else out + bias
