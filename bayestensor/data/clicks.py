"""Click logs in Criteo's format, and made-up ones of the same shape."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError

COUNTS, CATEGORIES = 13, 26
_PIECE = 65_536  # lines that are turned into arrays at a time: a list of numbers takes ten times the memory
_LARGEST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Clicks:
    """x (n, 13 + 26) int32: counts, then categories as row numbers of tables of `sizes` rows; y (n,) zeros and ones.

    `odds` (n,) are the true log odds, where the clicks are made up.
    """

    x: np.ndarray
    y: np.ndarray
    sizes: tuple[int, ...]
    odds: np.ndarray | None = None


def read_clicks(path: str | Path, sizes: int | Sequence[int], most: int | None = None) -> Clicks:
    """A file of Criteo's Display Advertising Challenge or Terabyte logs, plain or .gz.

    A line is `label, 13 whole numbers, 26 hexadecimal categories`, tab separated, where numbers and categories may be
    missing. A missing number becomes 0; category c becomes row `1 + c mod (size - 1)` of its table, a missing one
    row 0.

    Args:
        path: of the file.
        sizes: rows of all tables, or of each of the 26.
        most: lines to read; all when None.

    Raises:
        ValueError: not 26 sizes of at least 2.
        DataError: the file cannot be read, or has a line, told by its number, that is not of that form.
    """
    sizes = (sizes,) * CATEGORIES if isinstance(sizes, int) else tuple(sizes)
    if len(sizes) != CATEGORIES or min(sizes) < 2 or max(sizes) > _LARGEST:
        raise ValueError(f"sizes are {sizes}; {CATEGORIES} whole numbers from 2 to 2^31 - 1, one a category")
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            lines = enumerate(islice(file, most), 1)
            pieces = list(_pieces(lines, sizes, path))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not pieces:
        raise DataError(f"{path} has no line; expected a label, {COUNTS} whole numbers and {CATEGORIES} categories")
    x = np.concatenate(pieces)
    return Clicks(np.ascontiguousarray(x[:, 1:]), np.ascontiguousarray(x[:, 0]), sizes)


def _pieces(lines: Iterator[tuple[int, bytes]], sizes: tuple[int, ...], path: Path) -> Iterator[np.ndarray]:
    """int32 arrays (lines, 1 + 13 + 26)."""
    while piece := list(islice(lines, _PIECE)):
        rows = []
        for number, line in piece:
            try:
                rows.append(_row(line.rstrip(b"\r\n").split(b"\t"), sizes))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from None
        yield np.array(rows, np.int32)


def _row(fields: list[bytes], sizes: tuple[int, ...]) -> list[int]:
    if len(fields) != 1 + COUNTS + CATEGORIES:
        raise ValueError(
            f"{len(fields)} fields; expected {1 + COUNTS + CATEGORIES}: a label, {COUNTS} whole numbers and "
            f"{CATEGORIES} categories, tab separated"
        )
    if fields[0] not in (b"0", b"1"):
        raise ValueError(f"label {_shown(fields[0])}; expected 0 or 1")
    row = [int(fields[0])]
    for k, field in enumerate(fields[1 : 1 + COUNTS], 1):
        try:
            count = int(field or 0)
        except ValueError:
            raise ValueError(f"number {k} is {_shown(field)}; expected a whole number, or nothing") from None
        if abs(count) > _LARGEST:
            raise ValueError(f"number {k} is {count}; expected one of at most 31 bits")
        row.append(count)
    for k, (field, size) in enumerate(zip(fields[1 + COUNTS :], sizes, strict=True), 1):
        try:
            row.append(1 + int(field, 16) % (size - 1) if field else 0)
        except ValueError:
            raise ValueError(f"category {k} is {_shown(field)}; expected hexadecimal digits, or nothing") from None
    return row


def _shown(field: bytes) -> str:
    return repr(field[:40].decode("latin-1"))


def simulate_clicks(
    num: int, modes: Sequence[Sequence[int]], features: int = 4, rank: int = 2, seed: int = 0, signal: float = 2.0
) -> Clicks:
    """Clicks whose truth is of low rank: log odds `standardised(sum over pairs of <z_i, z_j>) * signal - 1`.

    z_i is the row of table i at the category: `table[row] = sum_r C[r] prod_k A_k[digit_k(row), r]`, digits of the row
    over `modes[i]`, slowest first, so that a train over them needs no more than `rank`. Categories fall off as 1 / rank
    (Zipf's law), which row is the most frequent being random; counts are log-normal and say nothing.

    Args:
        num: rows of data.
        modes: of each table, the sizes that its rows multiply from.
        features: of the true tables.
        rank: of the true tables.
        seed: of the truth and the data.
        signal: standard deviation of the log odds.
    """
    rng = np.random.default_rng(seed)
    chosen = np.empty((num, len(modes)), np.int32)
    total, squares = np.zeros((num, features)), np.zeros((num, features))
    for k, shape in enumerate(modes):
        size = math.prod(shape)
        weights = 1 / np.arange(1, size + 1)
        drawn = rng.choice(size, num, p=weights / weights.sum())
        chosen[:, k] = rng.permutation(size)[drawn]
        product = np.ones((num, rank))
        for digit, mode in zip(np.unravel_index(chosen[:, k], shape), shape, strict=True):
            product *= rng.normal(size=(mode, rank))[digit]
        z = product @ rng.normal(size=(rank, features))
        total, squares = total + z, squares + z**2
    pairs = ((total**2 - squares) / 2).sum(1)  # the sum over all pairs
    odds = signal * (pairs - pairs.mean()) / pairs.std() - 1
    counts = np.floor(np.exp(rng.normal(1.0, 1.0, (num, COUNTS)))).astype(np.int32)
    y = (rng.random(num) < 1 / (1 + np.exp(-odds))).astype(np.int32)
    return Clicks(np.concatenate([counts, chosen], axis=1), y, tuple(math.prod(shape) for shape in modes), odds)
