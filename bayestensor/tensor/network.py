"""What a factored tensor is: named cores, each a tuple of named legs (einsum semantics)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np

from bayestensor.typing import Array


@dataclass(frozen=True)
class Core:
    """One array of a network: `legs` names its axes, `shrunk_by` the bonds whose scales multiply its variance.

    `shrunk_by` may repeat a bond (the variance then carries that scale squared) and defaults to every bond
    of the core, so that no core is left free to swallow the norm of its neighbours.
    """

    name: str
    legs: tuple[str, ...]
    shrunk_by: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Network:
    """A tensor as a contraction of cores: `X[rows, cols] = sum over bonds of the product of cores`.

    A leg that is neither in `rows` nor in `cols` is a bond and is summed over; it may join any number of
    cores (CP's rank joins them all). Frozen and hashable, hence static under `jax.jit`.

    Args:
        cores: the arrays, in order.
        sizes: leg -> size, a mapping (kept as a sorted tuple of pairs).
        rows: legs of the output (left) index of the matrix view, slowest first.
        cols: legs of the input (right) index of the matrix view, slowest first.

    Raises:
        ValueError: names that repeat or are no identifier, legs without a size, modes that no core carries,
            sizes below 1.
    """

    cores: tuple[Core, ...]
    sizes: Mapping[str, int] | tuple[tuple[str, int], ...]
    rows: tuple[str, ...]
    cols: tuple[str, ...] = ()

    def __post_init__(self):
        sizes = dict(self.sizes)  # accepts a mapping or pairs
        for leg, size in sizes.items():
            if not str(leg).isidentifier() or leg == "batch":
                raise ValueError(
                    f"leg {leg!r} is no usable name; legs are named like Python variables, and not 'batch'"
                )
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
                raise ValueError(f"size of leg {leg!r} is {size!r}; sizes are whole numbers of at least 1")
        modes = (*self.rows, *self.cols)
        _refuse_repeats("mode", modes)
        _refuse_repeats("core", [core.name for core in self.cores])
        if not self.cores:
            raise ValueError("a network needs at least one core")
        cores = []
        for core in self.cores:
            _refuse_repeats(f"leg of core {core.name!r}", core.legs)
            missing = [leg for leg in core.legs if leg not in sizes]
            if missing:
                raise ValueError(f"core {core.name!r} has legs {missing} with no size; sizes has {sorted(sizes)}")
            bonds = tuple(leg for leg in core.legs if leg not in modes)
            shrunk_by = bonds if core.shrunk_by is None else tuple(core.shrunk_by)
            stray = [leg for leg in shrunk_by if leg not in bonds]
            if stray:
                raise ValueError(f"core {core.name!r} is shrunk by {stray}, not bonds of it; its bonds are {bonds}")
            cores.append(Core(core.name, tuple(core.legs), shrunk_by))
        used = {leg for core in cores for leg in core.legs}
        for what, legs in (("mode", modes), ("sized leg", sizes)):
            unused = [leg for leg in legs if leg not in used]
            if unused:
                raise ValueError(f"{what} {unused} is on no core; the cores carry {sorted(used)}")
        object.__setattr__(self, "cores", tuple(cores))
        object.__setattr__(self, "sizes", tuple(sorted((leg, int(size)) for leg, size in sizes.items())))
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "cols", tuple(self.cols))

    @cached_property
    def size(self) -> dict[str, int]:
        """Leg -> size."""
        return dict(self.sizes)

    @cached_property
    def core(self) -> dict[str, Core]:
        """Name -> core."""
        return {core.name: core for core in self.cores}

    def shrunk_by(self, name: str) -> tuple[str, ...]:
        """Bonds whose scales multiply the variance of a core's entries, one that counts twice named twice."""
        return self.core[name].shrunk_by or ()

    @property
    def modes(self) -> tuple[str, ...]:
        """Row legs, then column legs: the axes of the dense tensor."""
        return self.rows + self.cols

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        """Summed legs, in order of first appearance."""
        legs = dict.fromkeys(leg for core in self.cores for leg in core.legs)
        return tuple(leg for leg in legs if leg not in self.modes)

    @property
    def ranks(self) -> dict[str, int]:
        """Bond -> its present size."""
        return {bond: self.size[bond] for bond in self.bonds}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense tensor, one axis a mode."""
        return tuple(self.size[leg] for leg in self.modes)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(product of row sizes, product of column sizes)."""
        return math.prod(self.size[leg] for leg in self.rows), math.prod(self.size[leg] for leg in self.cols)

    def core_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one core's array."""
        return tuple(self.size[leg] for leg in self.core[name].legs)

    @property
    def num_parameters(self) -> int:
        """Entries of all cores together."""
        return sum(math.prod(self.core_shape(core.name)) for core in self.cores)

    def num_bytes(self, itemsize: int = 4) -> int:
        """Bytes of all cores at `itemsize` bytes an entry."""
        return itemsize * self.num_parameters

    def check_bond(self, bond: str) -> None:
        """Raise ValueError, naming the bonds there are, if `bond` is none of them."""
        if bond not in self.bonds:
            raise ValueError(f"{bond!r} is no bond of this network; its bonds are {list(self.bonds)}")

    def bond_count(self, bond: str) -> int:
        """D = number of core entries tied to one index of `bond` through `shrunk_by`."""
        self.check_bond(bond)
        tied = (core for core in self.cores if bond in self.shrunk_by(core.name))
        return sum(math.prod(self.core_shape(core.name)) // self.size[bond] for core in tied)

    def resized(self, sizes: Mapping[str, int]) -> Network:
        """The same network with other sizes for some legs."""
        unknown = [leg for leg in sizes if leg not in self.size]
        if unknown:
            raise ValueError(f"no leg {unknown} in this network; its legs are {sorted(self.size)}")
        return Network(self.cores, self.size | dict(sizes), self.rows, self.cols)


def fitted(network: Network, cores: Mapping[str, Array]) -> Factored:
    """The tensor whose bond sizes are read off its arrays: a network pruned or padded since `network` was declared."""
    sizes = {
        leg: size
        for core in network.cores
        for leg, size in zip(core.legs, cores[core.name].shape, strict=True)
        if leg in network.bonds
    }
    return factored(network.resized(sizes), cores)


def _refuse_repeats(what: str, names) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"{what} {repeated} is named twice; names must differ")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Factored:
    """A network with its arrays: `cores[name]` has the shape of that core's legs. A pytree, final.

    Build one with `factored`, which checks the arrays against the network.
    """

    network: Network = field(metadata={"static": True})
    cores: dict[str, Array]


def factored(network: Network, cores: Mapping[str, Array]) -> Factored:
    """Arrays checked against their network.

    Raises:
        ValueError: a core that is missing, unknown, or of another shape.
    """
    if set(cores) != set(network.core):
        raise ValueError(f"arrays are named {sorted(cores)}; the network's cores are {sorted(network.core)}")
    for name, array in cores.items():
        if tuple(array.shape) != network.core_shape(name):
            legs = network.core[name].legs
            raise ValueError(
                f"core {name!r} has shape {tuple(array.shape)}; its legs {legs} ask for {network.core_shape(name)}"
            )
    return Factored(network, {core.name: cores[core.name] for core in network.cores})
