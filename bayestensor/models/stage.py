"""The geometry of a convolution with its pooling: numbers only, so that a config can be checked at once."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Images (height, width, channels) through a square window at stride 1, then the largest of each square of `pool`.

    Args:
        in_shape: height, width and channels that come in.
        out_channels: that go out.
        kernel_size: side of the window.
        padding: 'VALID', or 'SAME' for as many windows as pixels.
        pool: side of the square that is pooled; rows and columns that fill none are left out.

    Raises:
        ValueError: nothing would be left.
    """

    in_shape: tuple[int, int, int]
    out_channels: int
    kernel_size: int = 5
    padding: str = "VALID"
    pool: int = 2

    def __post_init__(self):
        if min(self.out_shape) < 1:
            raise ValueError(
                f"images of {self.in_shape[0]}x{self.in_shape[1]} leave nothing after a window of {self.kernel_size} "
                f"({self.padding}) and pooling by {self.pool}"
            )

    @property
    def conv_space(self) -> tuple[int, int]:
        """Height and width before pooling."""
        lost = self.kernel_size - 1 if self.padding == "VALID" else 0
        return self.in_shape[0] - lost, self.in_shape[1] - lost

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
