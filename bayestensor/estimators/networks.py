"""The network of a fit by default, and which of its cores are smooth or follow features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayestensor.models.side import Features
from bayestensor.tensor.core_rows import row_shape, split_legs
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Network

_WIDEST = {"cp": 40}  # largest default rank; of the other formats 10
_LONGEST_CHAIN = 2000  # rows of a mode that 'auto' lets be smooth: they are gone through one after another
_LARGEST_BLOCK = 400  # most unknowns of one row's normal equations that 'auto' asks for


def default_network(format: str, shape: tuple[int, ...], count: int, max_rank: Any) -> Network:
    """The network of a format over a shape, of the largest rank allowed.

    'auto' is the largest rank with no more parameters than observations, at most 40 for CP and 10 for the others, no
    bond larger than any tensor of this shape needs (a ring's first as large as its others), and no row of normal
    equations above 400 unknowns.

    Raises:
        ValueError: no such format, or a rank that is none.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; one of {', '.join(FORMATS)} is needed")
    rows, cols = tuple(shape), tuple[int, ...]()
    if format == "tt_matrix":  # pairs modes: the first half are rows
        cut = (len(shape) + 1) // 2
        rows, cols = tuple(shape[:cut]), (*shape[cut:], *(1,) * (2 * cut - len(shape)))
    build = FORMATS[format]
    if max_rank != "auto":
        return build(rows, cols, rank=max_rank)
    full = dict(build(rows, cols, rank="full").ranks)
    if format == "tensor_ring" and full:
        full["b0"] = max(full.values())  # 'full' opens the ring there: a train

    def capped(rank: int) -> Network:
        return build(rows, cols, rank={bond: max(1, min(rank, size)) for bond, size in full.items()})

    best = capped(1)
    for rank in range(2, _WIDEST.get(format, 10) + 1):
        tried = capped(rank)
        block = max(row_shape(tried, core.name)[1] for core in tried.cores)
        if tried.num_parameters > count or block > _LARGEST_BLOCK:
            break
        best = tried
    return best


def smooth_cores(network: Network, smooth: Any) -> tuple[str, ...]:
    """Cores whose rows are an autoregression: those with the mode as their one mode leg.

    Raises:
        ValueError: a mode that is none, or that shares its cores.
    """
    lone = _lone_cores(network)
    if isinstance(smooth, str):
        if smooth != "auto":
            raise ValueError(f"smooth is {smooth!r}; 'auto' or a tuple of modes (0, 1, ...) is needed")
        return tuple(name for mode, name in lone.items() if 2 < network.shape[mode] <= _LONGEST_CHAIN)
    wrong = [mode for mode in smooth if mode not in lone]
    if wrong:
        raise ValueError(f"smooth names modes {wrong}; this network can have {sorted(lone)} smooth")
    return tuple(lone[mode] for mode in smooth if network.shape[mode] > 1)


def side_features(network: Network, side: Any) -> tuple[tuple[str, Features], ...]:
    """(core, features) of the modes that have some.

    Raises:
        ValueError: no mapping, a mode that is none or shares its cores, or features that are none.
    """
    if side is None:
        return ()
    if not isinstance(side, Mapping):
        raise ValueError(f"side is {type(side).__name__}; a mapping mode -> features (size of the mode, any) is needed")
    lone = _lone_cores(network)
    if wrong := [mode for mode in side if mode not in lone]:
        raise ValueError(f"side names modes {wrong}; in this network {sorted(lone)} can have features")
    return tuple((lone[mode], Features.build(x, network.shape[mode], mode)) for mode, x in sorted(side.items()))


def _lone_cores(network: Network) -> dict[int, str]:
    """Mode -> the core that it has to itself."""
    lone = {}
    for core in network.cores:
        open_, _ = split_legs(network, core)
        if len(open_) == 1:
            lone[network.modes.index(open_[0])] = core.name
    return lone
