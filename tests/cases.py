"""What the ops are tested with: shapes, layouts in memory, dtypes, and output memory that shows what was not written."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAN = float("nan")


# ---- layouts: the same values elsewhere in memory; NaN in the gaps, so that a kernel that reads them says so


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def _reversed(t: Tensor) -> Tensor:
    backwards = tuple(reversed(range(t.dim())))
    return t.permute(backwards).contiguous().permute(backwards)


def _offset(t: Tensor) -> Tensor:
    """Contiguous, and one element off any alignment."""
    return torch.cat([t.new_full((1,), NAN), t.flatten()])[1:].view(t.shape)


def _sliced(t: Tensor) -> Tensor:
    large = t.new_full([2 * size + 1 for size in t.shape], NAN)
    view = large[(slice(1, None, 2),) * t.dim()]
    return view.copy_(t)


def _cropped(t: Tensor) -> Tensor:
    """Channels last, with gaps between the pixels."""
    large = t.new_full([t.shape[0], t.shape[1] + 3, *t.shape[2:]], NAN)
    view = _channels_last(large)[:, 1:-2]
    return view.copy_(t)


def _expanded(t: Tensor) -> Tensor:
    """Every column of dim 1 the first one."""
    return t[:, :1].expand(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels-last": _channels_last,
    "transposed": _transposed,
    "reversed": _reversed,
    "offset": _offset,
    "sliced": _sliced,
    "cropped": _cropped,
    "expanded": _expanded,
}


# ---- batches


def _inner_transposed(t: Tensor) -> Tensor:
    """Sample after sample, the last dimension before the others within each."""
    return t.movedim(-1, 1).contiguous().movedim(1, -1)


BATCH_LAYOUTS = LAYOUTS | {"inner-transposed": _inner_transposed}


@dataclass(frozen=True)
class Batch:
    """Samples (N, ...)."""

    name: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    size: float = 1.0  # of its elements

    def __str__(self) -> str:
        sized = "" if self.size == 1 else f"-{self.size:g}"
        return f"{self.name}-{'x'.join(map(str, self.shape))}-{self.layout}{sized}"

    def make(self, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return BATCH_LAYOUTS[self.layout]((torch.randn(self.shape, generator=generator) * self.size).to(dtype))


# One sample, one element, odd sizes, and sizes around those at which a kernel cuts its work or takes elements in packs.
BATCHES = [
    Batch("one", (1, 1)),
    Batch("one sample", (1, 7)),
    Batch("numbers", (7,)),
    Batch("numbers", (5000, 1)),
    Batch("points", (256, 2)),
    Batch("odd", (17, 129)),
    Batch("odd", (5, 3, 7, 9)),
    Batch("packs", (3, 4096)),
    Batch("packs and one", (3, 4097)),
    Batch("packs and seven", (2, 2055)),
    Batch("images", (64, 3, 32, 32)),
    Batch("images", (8, 3, 64, 64), "channels-last"),
    Batch("a task", (3, 2**15)),
    Batch("a task and one", (3, 2**15 + 1)),
    Batch("large", (2, 100003)),
    Batch("large", (1, 2**20)),
    Batch("videos", (3, 2, 3, 4, 5)),
]
LAID_OUT_BATCHES = [
    Batch(name, shape, layout)
    for name, shape in (("rows", (11, 13)), ("sounds", (6, 5, 3)), ("images", (10, 7, 3, 5)), ("videos", (4, 3, 2, 3, 2)))
    for layout in BATCH_LAYOUTS
    if len(shape) > 2 or layout not in ("channels-last", "cropped", "inner-transposed")
] + [Batch("large", (3, 5, 100, 77), layout) for layout in ("channels-last", "transposed", "inner-transposed")]
EMPTY_BATCHES = [Batch("no elements", (3, 0)), Batch("no elements", (2, 3, 0, 2)), Batch("no elements", (1, 0, 5))]
# Squares that leave float32 at either end, and lengths whose inverse does.
SIZED_BATCHES = [
    Batch("sized", shape, size=size)
    for shape in ((3, 5), (4, 3, 8, 8), (2, 40000))
    for size in (1e-42, 1e-39, 1e-30, 1e-20, 1e18, 1e25, 1e34)
]


# ---- volumes

# One value, one position, odd sizes, channels around those at which a kernel puts rows together or takes spans of them, positions
# around those at which it goes plane by plane, and sizes at which it cuts.
VOLUMES = [
    Batch("one", (1, 1)),
    Batch("one channel", (8, 1)),
    Batch("one sample", (1, 7)),
    Batch("points", (256, 2)),
    Batch("rows", (64, 513)),
    Batch("one position", (12, 17, 1, 1)),
    Batch("sounds", (6, 17, 5)),
    Batch("odd", (6, 3, 5, 9)),
    Batch("odd", (4, 3, 33, 35)),
    Batch("odd", (3, 512, 3, 5)),
    Batch("planes", (4, 5, 8, 8)),
    Batch("planes", (2, 1, 9, 15)),
    Batch("images", (8, 17, 24, 24), "channels-last"),
    Batch("images", (4, 70, 24, 24), "channels-last"),
    Batch("images", (4, 600, 9, 9), "channels-last"),
    Batch("images", (12, 64, 16, 16)),
    Batch("large", (2, 1, 300, 300)),
    Batch("large", (2, 3, 200, 203), "channels-last"),
    Batch("videos", (4, 3, 2, 5, 4)),
]
LAID_OUT_VOLUMES = [
    Batch(name, shape, layout)
    for name, shape in (("sounds", (6, 5, 3)), ("images", (4, 7, 3, 5)), ("images", (2, 5, 9, 13)), ("videos", (4, 3, 2, 3, 2)))
    for layout in BATCH_LAYOUTS
]


# ---- weights


@dataclass(frozen=True)
class Weight:
    """A weight whose matrix has its rows along ``dim``."""

    name: str
    shape: tuple[int, ...]
    dim: int = 0
    layout: str = "contiguous"
    size: float = 1.0  # of its elements

    def __str__(self) -> str:
        sized = "" if self.size == 1 else f"-{self.size:g}"
        return f"{self.name}-{'x'.join(map(str, self.shape))}-dim{self.dim}-{self.layout}{sized}"

    def make(self, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return LAYOUTS[self.layout]((torch.randn(self.shape, generator=generator) * self.size).to(dtype))


def start(
    weights: list[Tensor], dims: list[int], generator: torch.Generator, wide: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """u and v of all weights as training has them, from two iterations in float64; in ``wide``, or as wide as the weights.

    From random vectors |W v| may cancel to any small number, and the rounding of every backend grows by as much.
    """
    wide = wide or torch.promote_types(weights[0].dtype, torch.float32)
    us, vs = [], []
    for weight, dim in zip(weights, dims, strict=True):
        w = weight.double().movedim(dim, 0).flatten(1)
        u, v = (_unit(torch.randn(size, dtype=torch.float64, generator=generator)) for size in w.shape)
        for _ in range(2):
            u = _unit(w @ v, u)
            v = _unit(w.T @ u, v)
        us.append(u.to(wide))
        vs.append(v.to(wide))
    return torch.cat(us), torch.cat(vs)


def _unit(vector: Tensor, otherwise: Tensor | None = None) -> Tensor:
    length = vector.norm()
    return vector / length if length > 0 else vector if otherwise is None else otherwise


RESNET32_CRITIC = [
    Weight("resnet32", (128, 3, 3, 3)),
    *[Weight("resnet32", (128, 128, 3, 3))] * 7,
    Weight("resnet32", (128, 3, 1, 1)),
    Weight("resnet32", (128, 128, 1, 1)),
    Weight("resnet32", (1, 128)),
]
DCGAN64 = [
    Weight("generator", (128, 512, 4, 4), dim=1),
    Weight("generator", (512, 256, 4, 4), dim=1),
    Weight("generator", (256, 128, 4, 4), dim=1),
    Weight("generator", (128, 64, 4, 4), dim=1),
    Weight("generator", (64, 3, 4, 4), dim=1),
    Weight("critic", (64, 3, 4, 4)),
    Weight("critic", (128, 64, 4, 4)),
    Weight("critic", (256, 128, 4, 4)),
    Weight("critic", (512, 256, 4, 4)),
    Weight("critic", (1, 512, 4, 4)),
]

# One element, one row, one column, odd sizes, and sizes around those at which a kernel cuts its work.
SHAPES = [
    Weight("one", (1, 1)),
    Weight("row", (1, 7)),
    Weight("column", (7, 1)),
    Weight("odd", (3, 5)),
    Weight("odd", (17, 129)),
    Weight("odd", (5, 9), dim=1),
    Weight("odd", (3, 4, 5), dim=2),
    Weight("wide", (7, 8191)),
    Weight("wide", (3, 20000)),
    Weight("wide", (40, 5000)),
    Weight("tall", (100, 33)),
    Weight("tall", (8191, 7)),
    Weight("square", (513, 515)),
    Weight("conv1d", (6, 4, 3)),
    Weight("conv1d", (4, 6, 3), dim=1),
    Weight("conv3d", (5, 3, 2, 3, 2)),
    Weight("conv3d", (3, 5, 2, 3, 2), dim=1),
    Weight("depthwise", (9, 1, 3, 3)),
    Weight("transposed", (6, 700, 3, 3), dim=1),
    Weight("row", (1, 2**20)),
    Weight("column", (2**20, 1)),
]
LAID_OUT = [
    Weight(name, shape, dim, layout)
    for name, shape in (("linear", (11, 13)), ("conv1d", (6, 5, 3)), ("conv2d", (10, 7, 3, 5)), ("conv3d", (4, 3, 2, 3, 2)))
    for dim in (0, 1)
    for layout in LAYOUTS
    if len(shape) > 2 or layout not in ("channels-last", "cropped")
]
# Below eps, and where the square of sigma has no place in float32. The shapes keep |W v| far from eps with a size of 1e-13.
SIZED = [
    Weight("sized", shape, dim, size=size)
    for shape, dim in (((3, 5), 0), ((12, 7), 0), ((300, 700), 0), ((40, 5000), 0), ((40, 20, 5, 5), 1))
    for size in (1e-20, 1e-13, 1e-9, 1e15, 1e18, 1e25)
]
EMPTY = [
    Weight("no rows", (0, 5)),
    Weight("no columns", (5, 0)),
    Weight("no rows", (3, 0, 2, 2), dim=1),
    Weight("no columns", (3, 0, 2, 2)),
    Weight("nothing", (0, 0)),
]


# ---- memory


GLIBC = platform.libc_ver()[0] == "glibc"
_M_PERTURB = -6  # of glibc's mallopt
POISON = 0x40  # as the byte of an element of any dtype a number of size one to a hundred; so is its complement, in freed memory


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is allocated inside holds what no kernel computes, so that an output element that was not written shows.

    NaN where PyTorch's ``empty`` allocates; other numbers where a kernel goes past it to the allocator, as the stable ABI does.
    """
    deterministic, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if GLIBC:
        ctypes.CDLL(None).mallopt(_M_PERTURB, POISON ^ 0xFF)
    try:
        yield
    finally:
        if GLIBC:
            ctypes.CDLL(None).mallopt(_M_PERTURB, 0)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled
