"""The geometry of convolutions: numbers only, so that a config can be checked at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTHS = (16, 32, 64)  # channels of a residual network's three stages of blocks


@dataclass(frozen=True)
class Stage:
    """`activation(norm(max pool(convolution)) + what is added)` of images (height, width, channels).

    Args:
        in_shape: height, width and channels that come in.
        out_channels: that go out.
        kernel_size: side of the window.
        padding: 'VALID', or 'SAME' for as many windows as pixels at stride 1.
        pool: side of the square whose largest entry is kept; rows and columns that fill none are left out.
        stride: pixels between windows.
        norm: whether batch normalisation follows, in place of a bias.
        add: number of the stage whose output is added before the activation, strided and filled up with zeros to the
            shape here; None for none.

    Raises:
        ValueError: nothing would be left.
    """

    in_shape: tuple[int, int, int]
    out_channels: int
    kernel_size: int = 5
    padding: str = "VALID"
    pool: int = 2
    stride: int = 1
    norm: bool = False
    add: int | None = None

    def __post_init__(self):
        if min(self.out_shape) < 1:
            raise ValueError(
                f"images of {self.in_shape[0]}x{self.in_shape[1]} leave nothing after a window of {self.kernel_size} "
                f"({self.padding}) and pooling by {self.pool}"
            )

    @property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros (before, after) height and width."""
        lost = self.kernel_size - 1 if self.padding == "SAME" else 0
        return ((lost // 2, lost - lost // 2),) * 2

    @property
    def conv_space(self) -> tuple[int, int]:
        """Height and width before pooling."""
        lost = self.kernel_size - 1 if self.padding == "VALID" else 0
        high, wide = ((n - lost - 1) // self.stride + 1 for n in self.in_shape[:2])
        return high, wide

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width and channels that go out."""
        high, wide = (n // self.pool for n in self.conv_space)
        return high, wide, self.out_channels

    @property
    def kernel_shape(self) -> tuple[int, int]:
        """Of the kernel as a matrix: (out channels, window * in channels)."""
        return self.out_channels, self.kernel_size**2 * self.in_shape[2]

    @property
    def pixels(self) -> int:
        """That come in."""
        return math.prod(self.in_shape[:2])

    @property
    def windows(self) -> int:
        """That the kernel is applied to."""
        return math.prod(self.conv_space)


def check_chain(stages: Sequence[Stage]) -> None:
    """Refuse stages that do not follow from each other.

    Raises:
        ValueError: naming the stage and both shapes.
    """
    for k, (before, after) in enumerate(itertools.pairwise(stages)):
        if before.out_shape != after.in_shape:
            raise ValueError(f"stage {k} gives {before.out_shape} and stage {k + 1} takes {after.in_shape}")
    for k, stage in enumerate(stages):
        if stage.add is None:
            continue
        if not 0 <= stage.add < k:
            raise ValueError(f"stage {k} adds the output of stage {stage.add}; it must be one before it")
        shortcut_stride(stages[stage.add].out_shape, stage.out_shape)


def shortcut_stride(shape: Sequence[int], wanted: Sequence[int]) -> int:
    """Which pixels of a shape are left where it is added to a smaller one: every so many-th.

    Raises:
        ValueError: no stride leads from one to the other, or channels would be lost.
    """
    stride = -(-shape[0] // wanted[0])
    if [-(-n // stride) for n in shape[:2]] != list(wanted[:2]) or shape[2] > wanted[2]:
        raise ValueError(f"images of {tuple(shape)} cannot be strided and filled up to {tuple(wanted)}")
    return stride


def average_shape(shape: Sequence[int], side: int) -> tuple[int, int, int]:
    """Of images after the mean over squares of a side; 0 stands for the whole image.

    Raises:
        ValueError: squares that do not fit evenly.
    """
    high, wide, channels = shape
    if side == 0:
        return 1, 1, channels
    if high % side or wide % side:
        raise ValueError(f"images of {high}x{wide} are no whole number of squares of {side} to average")
    return high // side, wide // side, channels


def residual_stages(in_shape: tuple[int, int, int], depth: int) -> tuple[Stage, ...]:
    """A first convolution and three times (depth - 2) / 6 blocks of two, the second adding what came into the first.

    The second and the third group begin with a stride of 2 (He et al. 2016, section 4.2).

    Raises:
        ValueError: a depth that is not 6 n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth is {depth}; it is 6 n + 2: 8, 14, 20, 32, 44, 56, 110, ...")
    stages = [Stage(in_shape, WIDTHS[0], 3, "SAME", 1, norm=True)]
    for group, width in enumerate(WIDTHS):
        for block in range(blocks):
            stride, before = 2 if group and not block else 1, len(stages) - 1
            stages.append(Stage(stages[-1].out_shape, width, 3, "SAME", 1, stride, norm=True))
            stages.append(Stage(stages[-1].out_shape, width, 3, "SAME", 1, norm=True, add=before))
    return tuple(stages)
