"""Exchanges of ranks on the CPUs of one node, through memory that all of them map.

gloo sends everything through sockets, and its reduce-scatter is an all-reduce. Here a rank copies
what it gives into memory of its own; a collective of the same kind by gloo, over one element per
rank, tells it that all others have done so; then it reads what they gave. Order, time-outs, lost
peers and the flight recorder are thus gloo's, as everywhere else.

A rank has two memories, and writes them in turns: when it comes back to one, all others have met
it in the exchange between, so they have read what was in there.

What is larger than a memory crosses in pieces, so that a rank holds no more than two of them for
each of its groups, whatever is exchanged. Of a memory that smaller exchanges leave unused, the
kernel holds nothing.

The memories are files without a name (memfd_create(2)), which the group opens under /proc. They end
with the last process that maps them, however it ends, and no limit on /dev/shm holds for them.
Ranks that can't map each other's (on other nodes, in other pods, under limits) stay with gloo, and
all do where PARCTL_SHARED_MEMORY is 0.

    all-gather      every rank reads all
    reduce-scatter  every rank reads its part of all, and adds up in order of rank
    all-reduce      two ranks read all; more add up a part each, and read the others' sums
    sum in place    all-reduces of many tensors, as many of them at once as fit a memory
"""

import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from mmap import mmap
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from parctl.runtime.model.parts import parts

SWITCH = "PARCTL_SHARED_MEMORY"
NAME = "parctl-exchange"
SECRET_BYTES = 16  # at the start of a new memory
PIECE_BYTES = 32 << 20  # most that a memory holds; at this size a meeting costs little beside it

functional = torch.ops._c10d_functional


class Memory:
    """One of the two memories of a rank, as a process maps it. Its rank alone writes it."""

    def __init__(self, file: int) -> None:
        self._bytes = torch.frombuffer(mmap(file, PIECE_BYTES), dtype=torch.uint8)

    def like(self, x: Tensor) -> Tensor:
        """The first bytes as a tensor of the same type and shape; `x` need not have memory."""
        return self._bytes[: x.nbytes].view(x.dtype).view(x.shape)


class SharedMemory:
    """What the ranks of one group map. All call the same, with equal shapes and types."""

    def __init__(self, group: dist.ProcessGroup, pairs: Sequence[Sequence[Memory]]) -> None:
        self._rank, self._size, self._name = group.rank(), group.size(), group.group_name
        self._pairs = pairs
        self._turn = 0
        self._one, self._each = torch.zeros(1), torch.zeros(group.size())

    def all_gather(self, x: Tensor, parts: Sequence[Tensor]) -> None:
        """Fill the others' of `parts`, in order of rank, with what they gave."""
        for own, *places in pieces(x, *parts):
            self._write(own)
            functional.wait_tensor(
                functional.all_gather_into_tensor(self._one, self._size, self._name)
            )
            for rank, share in enumerate(self._read(own)):
                if rank != self._rank:
                    places[rank].copy_(share)

    def reduce_scatter(self, x: Tensor, out: Tensor, dim: int) -> None:
        """Add up this rank's part along `dim`, in the type of `out`."""
        for own, total in pieces(x, out, whole=dim):
            self._write(own)
            functional.wait_tensor(
                functional.reduce_scatter_tensor(self._each, "sum", self._size, self._name)
            )
            shares = self._read(own)
            add_up([share.chunk(self._size, dim)[self._rank] for share in shares], total)

    def all_reduce(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        for own, total in pieces(x.reshape(-1), out.view(-1)):
            self._write(own)
            self._meet()
            if self._size == 2:
                add_up(self._read(own), total)
            else:
                self._add_up_in_parts(own, total)
        return out

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Add to every tensor what it is on the other ranks. All are of one type."""
        for together in bundles(tensors):
            lengths = [x.numel() for x in together]
            flat = torch.empty(sum(lengths), dtype=together[0].dtype, device="meta")
            torch.cat([x.reshape(-1) for x in together], out=self._room(flat))
            self._meet()
            if self._size == 2:
                theirs = torch.split(self._read(flat)[1 - self._rank], lengths)
                torch._foreach_add_(together, shaped(theirs, together))
            else:
                total = torch.empty(flat.shape, dtype=flat.dtype)
                self._add_up_in_parts(flat, total)
                torch._foreach_copy_(together, shaped(torch.split(total, lengths), together))

    def _add_up_in_parts(self, x: Tensor, total: Tensor) -> None:
        shares = [share.tensor_split(self._size) for share in self._read(x)]
        own = shares[self._rank][self._rank]
        own.copy_(add_up([share[self._rank] for share in shares], torch.empty_like(own)))
        self._meet()
        torch.cat([share[rank] for rank, share in enumerate(shares)], out=total)

    def _meet(self) -> None:
        functional.wait_tensor(functional.all_reduce(self._one, "sum", self._name))

    def _write(self, x: Tensor) -> None:
        self._room(x).copy_(x)

    def _room(self, x: Tensor) -> Tensor:
        """Where to write next."""
        self._turn = 1 - self._turn
        return self._pairs[self._rank][self._turn].like(x)

    def _read(self, x: Tensor) -> list[Tensor]:
        """What all have written since this rank has met them, in order of rank."""
        return [pair[self._turn].like(x) for pair in self._pairs]


def pieces(*tensors: Tensor, whole: int | None = None) -> Iterable[tuple[Tensor, ...]]:
    """Cut tensors alike, so that one of the first fits a memory, along any dim but `whole`."""
    first = tensors[0]
    if first.nbytes <= PIECE_BYTES:
        return [tensors]
    dim = max((dim for dim in range(first.ndim) if dim != whole), key=first.size)
    length = max(1, PIECE_BYTES * first.size(dim) // first.nbytes)
    return zip(*(torch.split(tensor, length, dim) for tensor in tensors), strict=True)


def bundles(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Take tensors, or pieces of large ones, together while they fit a memory."""
    together: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for (piece,) in pieces(tensor):
            size += piece.nbytes
            if together and size > PIECE_BYTES:
                yield together
                together, size = [], piece.nbytes
            together.append(piece)
    if together:
        yield together


def shaped(flat: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.view(tensor.shape) for x, tensor in zip(flat, tensors, strict=True)]


def add_up(shares: Sequence[Tensor], out: Tensor) -> Tensor:
    """The sum of tensors of one shape, in their order; half precision is added up in float32."""
    if len(shares) == 2 and shares[0].dtype == out.dtype:
        return torch.add(*shares, out=out)
    wide = torch.promote_types(out.dtype, torch.float32) if out.is_floating_point() else out.dtype
    for part in parts(out):
        first, *others = (share[part] for share in shares)
        total = out[part].copy_(first) if out.dtype == wide else first.to(wide)
        for share in others:
            total += share.to(wide)
        if out.dtype != wide:
            out[part] = total
    return out


connected: weakref.WeakKeyDictionary[dist.ProcessGroup, SharedMemory] = weakref.WeakKeyDictionary()


def of(group: dist.ProcessGroup) -> SharedMemory | None:
    return connected.get(group)


def connect(mesh: DeviceMesh) -> None:
    """Give the group of a mesh of one dim shared memory, if gloo would join CPUs of one node.

    All ranks of the group call it.
    """
    group = mesh.get_group()
    if dist.get_backend(group) != "gloo" or sys.platform != "linux" or group.size() == 1:
        return
    if group in connected:  # by another stage of this rank
        return
    with ExitStack() as opened:
        pairs = exchange_memories(group, opened)
        answers: list[Any] = [None] * group.size()
        dist.all_gather_object(answers, len(pairs) == group.size(), group)
        if all(answers):
            connected[group] = SharedMemory(group, pairs)


def exchange_memories(group: dist.ProcessGroup, opened: ExitStack) -> list[list[Memory]]:
    """The memories of all ranks of a group, in their order, up to one that can't be had here."""
    files: list[int] = []
    secret = os.urandom(SECRET_BYTES)
    turned_off = os.environ.get(SWITCH) == "0"
    with suppress(OSError):
        for _ in range(0 if turned_off else 2):
            file = os.memfd_create(NAME)
            opened.callback(os.close, file)
            os.truncate(file, PIECE_BYTES)
            os.write(file, secret)
            files.append(file)
    offers: list[Any] = [None] * group.size()
    dist.all_gather_object(offers, (os.getpid(), files, secret), group)
    pairs: list[list[Memory]] = []
    with suppress(OSError):
        for pid, theirs, expected in offers:
            found = [open_memory(f"/proc/{pid}/fd/{file}", expected, opened) for file in theirs]
            pair = [memory for memory in found if memory is not None]
            if len(pair) < 2:
                break
            pairs.append(pair)
    return pairs


def open_memory(path: str, secret: bytes, opened: ExitStack) -> Memory | None:
    """None where this is another process's: a pid of another node or container."""
    if not os.readlink(path).startswith(f"/memfd:{NAME} "):
        return None
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    opened.callback(os.close, file)
    return Memory(file) if os.pread(file, SECRET_BYTES, 0) == secret else None


def shares_memory(group_name: str) -> bool:
    return resolve(group_name) in connected


def resolve(group_name: str) -> dist.ProcessGroup:
    found: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    group: dist.ProcessGroup = found(group_name)
    return group


@torch.library.custom_op("parctl::all_gather", mutates_args=())
def all_gather(x: Tensor, group_name: str, dim: int) -> Tensor:
    """The parts of all ranks, one after the other along `dim`."""
    group = resolve(group_name)
    out = room(x, dim, x.size(dim) * group.size())
    parts = out.chunk(group.size(), dim)
    parts[group.rank()].copy_(x)
    connected[group].all_gather(x, parts)
    return out


@torch.library.custom_op("parctl::reduce_scatter", mutates_args=())
def reduce_scatter(x: Tensor, group_name: str, dim: int) -> Tensor:
    """This rank's part, along `dim`, of the sum."""
    group = resolve(group_name)
    out = room(x, dim, x.size(dim) // group.size())
    connected[group].reduce_scatter(x, out, dim)
    return out


@torch.library.custom_op("parctl::all_reduce", mutates_args=())
def all_reduce(x: Tensor, group_name: str) -> Tensor:
    return connected[resolve(group_name)].all_reduce(x)


@all_gather.register_fake
def _(x: Tensor, group_name: str, dim: int) -> Tensor:
    return room(x, dim, x.size(dim) * resolve(group_name).size())


@reduce_scatter.register_fake
def _(x: Tensor, group_name: str, dim: int) -> Tensor:
    return room(x, dim, x.size(dim) // resolve(group_name).size())


@all_reduce.register_fake
def _(x: Tensor, group_name: str) -> Tensor:
    return x.new_empty(x.shape)


def room(x: Tensor, dim: int, length: int) -> Tensor:
    """An empty tensor like `x`, but for its length along `dim`."""
    shape = list(x.shape)
    shape[dim] = length
    return x.new_empty(shape)


SUMS = (torch.ops.parctl.all_reduce.default, torch.ops.parctl.reduce_scatter.default)
