"""Images with classes, read as records: one byte that says the class, then the pixels.

The format is that of CIFAR-10's binary files: pixels are bytes, channel by channel, row by row.
`corpus://stripes` needs no file: image i shows stripes in one of as many directions as there are
classes, with a width, a phase and noise that follow from i.
"""

from collections.abc import Sequence
from math import pi, prod
from pathlib import Path

import numpy as np
import torch
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from torch import Tensor

from parctl.errors import UsageError
from parctl.recipes.corpus import STRIPES
from parctl.recipes.spec import DataSpec, TrainSpec, VisionSpec
from parctl.runtime.data.batches import Batches, MicroBatch
from parctl.runtime.data.documents import list_files
from parctl.runtime.model.loss import IGNORED
from parctl.runtime.parallel.mesh import RankMesh

NUM_STRIPES = 8192  # images of `corpus://stripes`


def shape(vision: VisionSpec) -> tuple[int, int, int]:
    return vision.num_channels, vision.image_size, vision.image_size


class ImageStream:
    """Records `begin` to `end` of several files laid end to end, or of `corpus://stripes`."""

    def __init__(
        self, sources: Sequence[str], vision: VisionSpec, *, begin: int = 0, end: int | None = None
    ) -> None:
        self._sources, self._vision = tuple(sources), vision
        self._stripes = self._sources == (STRIPES,)
        self._paths: list[Path] = [] if self._stripes else list_files(sources)
        size = 1 + prod(shape(vision))
        self._parts = [
            np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, size) for path in self._paths
        ]
        self._edges = np.cumsum([0, *map(len, self._parts)])
        whole = NUM_STRIPES if self._stripes else int(self._edges[-1])
        self._begin, self._end = begin, whole if end is None else end

    def __len__(self) -> int:
        return self._end - self._begin

    def split(self, position: int) -> "tuple[ImageStream, ImageStream]":
        """Cut in two."""
        middle = self._begin + position
        first = ImageStream(self._sources, self._vision, begin=self._begin, end=middle)
        return first, ImageStream(self._sources, self._vision, begin=middle, end=self._end)

    def read(self, index: int) -> NDArray[np.int64]:
        """Return a record: class, then pixels."""
        place = self._begin + index
        if self._stripes:
            return stripes(place, self._vision)
        part = int(np.searchsorted(self._edges, place, side="right")) - 1
        record: NDArray[np.int64] = self._parts[part][place - int(self._edges[part])].astype(int)
        if record[0] >= self._vision.num_classes:
            where = f"{self._paths[part]}: record {place - int(self._edges[part])}"
            raise UsageError(
                f"{where} is of class {record[0]}, "
                f"but model.vision.num_classes is {self._vision.num_classes}",
                hint="a record is one byte of class and then the pixels",
            )
        return record


def stripes(index: int, vision: VisionSpec) -> NDArray[np.int64]:
    """Draw record `index` of `corpus://stripes`."""
    generator = Generator(PCG64(index))
    label = int(generator.integers(vision.num_classes))
    angle = pi * label / vision.num_classes
    rows, columns = np.mgrid[: vision.image_size, : vision.image_size] / vision.image_size
    along = np.cos(angle) * columns + np.sin(angle) * rows
    waves = np.sin(2 * pi * (generator.uniform(3, 5) * along + generator.uniform()))
    noise = generator.normal(0, 0.3, shape(vision))
    pixels = np.clip(128 + 80 * (waves + noise), 0, 255).astype(np.int64)
    return np.concatenate(([label], pixels.reshape(-1)))


class ImageBatches(Batches):
    """This rank's images of every global batch: one image where text has a sequence."""

    def __init__(
        self,
        images: ImageStream,
        train: TrainSpec,
        mesh: RankMesh,
        vision: VisionSpec,
        *,
        what: str,
    ) -> None:
        super().__init__(len(images), train, mesh)
        if self.num_sequences < 1:
            raise UsageError(
                f"data.{what} holds no image",
                hint="add files, or set train.validate_every to 0 if it is the validation data",
            )
        self._images, self._vision = images, vision

    def _row(self, sequence: int) -> NDArray[np.int64]:
        if sequence < self.num_sequences:
            return self._images.read(int(sequence))
        return np.concatenate(([IGNORED], np.zeros(prod(shape(self._vision)), dtype=np.int64)))

    def _micro_batch(self, rows_BX: Tensor) -> MicroBatch:
        """Pixels become numbers from -1 to 1."""
        pixels = rows_BX[:, 1:].to(
            torch.float64 if self._train.precision == "fp64" else torch.float32
        )
        images = (pixels / 127.5 - 1).view(-1, *shape(self._vision))
        return MicroBatch(tokens=images, targets=rows_BX[:, 0].contiguous())


def open_images(
    data: DataSpec, train: TrainSpec, vision: VisionSpec, mesh: RankMesh
) -> tuple[Batches, Batches | None]:
    """Open training and validation images. Without files for it, the end is held out."""
    images = ImageStream(data.train, vision)
    if data.validation:
        held_out = ImageStream(data.validation, vision)
    else:
        images, held_out = images.split(len(images) - int(len(images) * data.validation_fraction))
    validation = None
    if train.validate_every:
        validation = ImageBatches(held_out, train, mesh, vision, what="validation")
    return ImageBatches(images, train, mesh, vision, what="train"), validation
