"""Components that the residual asks for: all of them at the start of a long list of entries, one at a time later."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import opt_einsum

from bayestensor.estimators.counting import ranks, seen_noise, standing_out
from bayestensor.estimators.inputs import Observed
from bayestensor.estimators.spectral import compressed
from bayestensor.estimators.starting import best_starts, crowded, score, settle, settled, work
from bayestensor.models.conjugate import Conjugate
from bayestensor.models.effects import CONSTANT
from bayestensor.models.state import MAP, VARIATIONAL, State
from bayestensor.priors.base import ScalePrior
from bayestensor.tensor.core_rows import is_joint, row_shape, split_legs
from bayestensor.tensor.network import Network
from bayestensor.tensor.observations import Grid, Observations
from bayestensor.tensor.paths import contraction_path

_TOO_DEAR = 5e7  # multiplications of a sweep above which three random starts are too many
_ABOVE = 1.1  # times what noise gives: the best rank-one fit to pure noise explains 0.7 to 0.95 of its bound, squared
_WIDEN = 8  # components that one compiled shape more may add
_STEPS = 10  # to the leading component
_BLOCK = 1 << 20  # numbers of one core gathered at a time


def starts_by_spectrum(model: Conjugate, given: Observed) -> bool:
    """Whether random starts are too dear to try several, of a list of entries with nothing beside the network."""
    plain = model.likelihood in ("gaussian", "student_t") and not model.effects
    return plain and not given.dense and work(model.network, given) > _TOO_DEAR


def spectral_start(
    model: Conjugate,
    prior_of: Callable[[Network], ScalePrior],
    given: Observed,
    values: np.ndarray,
    sweeps_each: int,
    rng: np.random.Generator,
) -> tuple[Conjugate, State]:
    """The same network fitted to the small tensor within the modes' leading subspaces, and carried out of them.

    Args:
        model: of the whole tensor.
        prior_of: the prior of the scales for a network; that of the small one is not the large one's.
        given: the observed entries.
        values: theirs, of mean square 1.
        sweeps_each: mean-field sweeps from each start, and to settle.
        rng: for the starts.

    Returns:
        The model with the indices that stand out in the small tensor, and its state.
    """
    network = model.network
    legs = {leg: row_shape(network, core.name)[1] for core in network.cores for leg in core.legs}
    coords = _padded(given, network)
    small = compressed(coords, values, network.shape, [legs[mode] for mode in network.modes])
    size = math.sqrt(float((small.core**2).mean()))
    inner_network = network.resized(dict(zip(network.modes, small.core.shape, strict=True)))
    inner = replace(
        model, network=inner_network, prior=prior_of(inner_network), smooth=(), likelihood="gaussian", sides=()
    )
    whole = Observed(small.core.shape, np.argwhere(np.ones(small.core.shape, bool)), small.core.reshape(-1) / size)
    data = Grid.build(small.core / size, np.ones(small.core.shape, bool))
    state = best_starts(inner, data, whole, sweeps_each, VARIATIONAL, 1, rng)[0]
    state = settled(inner, state, data, whole, sweeps_each, VARIATIONAL, rng)
    noise = float(seen_noise(inner.network, state.precision, len(whole.values)))
    norms = standing_out(inner.network, state.cores, noise)
    kept = {bond: _or_largest(norm) for bond, norm in norms.items()}
    inner, state = inner.keep(state, kept)
    model = replace(model, network=network.resized(inner.network.ranks))
    bases, cores = dict(zip(network.modes, small.bases, strict=True)), {}
    for core in network.cores:
        array = np.asarray(state.cores[core.name]) * size ** (1 / len(network.cores))
        for axis, leg in enumerate(core.legs):
            if leg in bases:
                array = np.moveaxis(np.tensordot(bases[leg], array, (1, axis)), 0, axis)
        cores[core.name] = array
    return model, model.start(cores, 1.0)


def grow(
    model: Conjugate,
    state: State,
    data: Observations,
    given: Observed,
    values: np.ndarray,
    sweeps_each: int,
    widen: bool,
    rng: np.random.Generator,
) -> tuple[Conjugate, State]:
    """Components born as long as the residual has some that stand out and `score` falls.

    A newborn is a rank-one tensor, in every format one index of each bond. Newborns take the places of dead ones, all
    of them at once; of CP where all live and `widen` allows it, up to eight are added: each shape is compiled anew.
    """
    if model.likelihood != "gaussian" or len(model.network.shape) == 1:
        return model, state  # a vector is of rank one
    count, how = len(values), VARIATIONAL if state.covariances else MAP
    if not widen and crowded(model, state, count):
        return model, state
    while newborns := _newborns(model, state, given, values, places := free_places(model, state, count, widen)):
        larger, trial = model, state
        for columns, place in zip(newborns, places, strict=False):
            larger, trial = with_component(larger, trial, columns, place)
        trial = settle(larger, trial, data, sweeps_each, how, rng)
        if score(larger, trial, count) >= score(model, state, count):
            break
        model, state = larger, trial
        if not widen:  # one of several chains: the next births would gain it less than its burning in does
            break
    return model, state


def _newborns(
    model: Conjugate, state: State, given: Observed, values: np.ndarray, places: Sequence[Mapping[str, int]]
) -> list[list[np.ndarray]]:
    """`leading` of what the fit leaves, of what that leaves, and so on, as many as there are places for."""
    if not places:
        return []
    coords = _padded(given, model.network)
    left, found = values - _fitted(model, state, coords), []
    for _ in places:
        columns = leading(left, coords, model.network.shape, float(state.precision))
        if columns is None:
            break
        found.append(columns)
        left = left - _rank_one_at(columns, coords)
    return found


def leading(left: np.ndarray, coords: np.ndarray, shape: tuple[int, ...], precision: float) -> list[np.ndarray] | None:
    """Columns of the rank-one tensor nearest to what a fit leaves, at the observed entries; None if noise has one.

    That is where it explains less than `(noise * sum of sqrt(n_k))^2`, as the best for a tensor of pure noise does
    (Tomioka and Suzuki, arXiv 1407.1870).
    """
    small = compressed(coords, left, shape, [3] * len(shape))
    columns = [basis @ vector for basis, vector in zip(small.bases, _rank_one(small.core), strict=True)]
    for _ in range(_STEPS):
        for mode, size in enumerate(shape):
            others = math.prod(c[coords[:, k]] for k, c in enumerate(columns) if k != mode)
            weight = np.bincount(coords[:, mode], others**2, minlength=size)
            moment = np.bincount(coords[:, mode], others * left, minlength=size)
            columns[mode] = moment / np.maximum(weight, 0.1 * weight.mean() + 1e-300)  # rows with next to no entry
    gain = float((left**2).sum() - ((left - _rank_one_at(columns, coords)) ** 2).sum()) * precision
    return columns if gain > (_ABOVE * sum(map(math.sqrt, shape))) ** 2 else None


def _rank_one_at(columns: list[np.ndarray], coords: np.ndarray) -> np.ndarray:
    return math.prod(c[coords[:, k]] for k, c in enumerate(columns))


def free_places(model: Conjugate, state: State, count: int, widen: bool) -> list[dict[str, int]]:
    """For each newborn there is room for, bond -> index: the least of the dead, or of CP after the last with `widen`.

    Of CP dead is what does not stand out. Slices of other formats may lie in the span of live ones and have a norm all
    the same: there the least have to go where the rank is below the bond's size.
    """
    network = model.network
    noise = float(seen_noise(network, state.precision, count))
    norms = standing_out(network, state.cores, noise)
    live = {bond: int((norm > 0).sum()) for bond, norm in norms.items()}
    if not is_joint(network):
        live = ranks(network, {name: np.asarray(core) for name, core in state.cores.items()}, noise)
    room = min(len(norm) - live[bond] for bond, norm in norms.items())
    if room == 0 and widen and is_joint(network):
        return [{bond: len(norm) + k for bond, norm in norms.items()} for k in range(_WIDEN)]
    least = {bond: np.argsort(norm, kind="stable") for bond, norm in norms.items()}
    return [{bond: int(order[k]) for bond, order in least.items()} for k in range(room)]


def with_component(
    model: Conjugate, state: State, columns: list[np.ndarray], places: Mapping[str, int]
) -> tuple[Conjugate, State]:
    """Model and state with the rank-one tensor of these columns at one index of each bond, what was there gone."""
    old = model.network
    more = {bond: int(place == old.size[bond]) for bond, place in places.items()}
    network = old.resized({bond: old.size[bond] + more[bond] for bond in old.bonds})
    by_mode = {mode: column / np.linalg.norm(column) for mode, column in zip(old.modes, columns, strict=True)}
    size = math.prod(float(np.linalg.norm(c)) for c in columns) ** (1 / len(old.cores))

    def padded(array: Any, legs: Sequence[str]) -> np.ndarray:
        return np.pad(np.asarray(array), [(0, more.get(leg, 0)) for leg in legs])

    def by_bonds(array: Any, bonds: tuple[str, ...], times: int) -> np.ndarray:
        """An array whose last `times` axes are each all bonds of a core, padded."""
        lead, sizes = np.shape(array)[: np.ndim(array) - times], [old.size[bond] for bond in bonds]
        whole = padded(np.reshape(array, [*lead, *sizes * times]), ("",) * len(lead) + bonds * times)
        return whole.reshape(*lead, *[math.prod(network.size[bond] for bond in bonds)] * times)

    cores, covariances, correlations, sides = {}, {}, {}, {}
    for core in old.cores:
        name, (modes, bonds) = core.name, split_legs(old, core)
        array = padded(state.cores[name], core.legs)
        for axis, leg in enumerate(core.legs):
            if leg in places:
                np.moveaxis(array, axis, 0)[places[leg]] = 0
        own = reduce(np.multiply.outer, [by_mode[mode] for mode in modes], np.asarray(size))
        array[tuple(places.get(leg, slice(None)) for leg in core.legs)] = own
        cores[name] = array
        if name in state.covariances:
            covariances[name] = by_bonds(state.covariances[name], bonds, 2)
        if name in state.correlations:
            correlations[name] = by_bonds(state.correlations[name], bonds, 1)
        if name in state.sides:
            sides[name] = state.sides[name]._replace(map=by_bonds(state.sides[name].map, bonds, 1))
    scales = {bond: padded(v, (bond,)) for bond, v in state.scales.items()}
    for bond, v in scales.items():
        v[places[bond]] = v.max()
    state = state._replace(cores=cores, covariances=covariances, scales=scales, correlations=correlations, sides=sides)
    return replace(model, network=network), state


def _fitted(model: Conjugate, state: State, coords: np.ndarray) -> np.ndarray:
    """Tensor and effects at coordinates."""
    network, out = model.network, np.empty(len(coords))
    block = max(1, _BLOCK // max(row_shape(network, core.name)[1] for core in network.cores))
    for first in range(0, len(coords), block):
        at = dict(zip(network.modes, coords[first : first + block].T, strict=True))
        terms = [_gathered(np.asarray(state.cores[core.name]), core.legs, at) for core in network.cores]
        path = contraction_path(tuple(legs for _, legs in terms), tuple(a.shape for a, _ in terms), ("batch",))
        operands = [part for term in terms for part in term]
        out[first : first + block] = opt_einsum.contract(*operands, ("batch",), optimize=list(path))
    for name, value in state.effects.values.items():
        out += np.asarray(value) if name == CONSTANT else np.asarray(value)[coords[:, network.modes.index(name)]]
    return out


def _gathered(
    array: np.ndarray, legs: Sequence[str], at: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A core with its modes replaced by one leading axis, what they are `at`; the core itself where it has none."""
    modes = [leg for leg in legs if leg in at]
    if not modes:
        return array, tuple(legs)
    front = np.moveaxis(array, [legs.index(leg) for leg in modes], range(len(modes)))
    return front[tuple(at[leg] for leg in modes)], ("batch", *(leg for leg in legs if leg not in at))


def _rank_one(core: np.ndarray) -> list[np.ndarray]:
    """Vectors whose outer product is near the best of a small tensor: power iterations from its singular vectors."""
    unfolded = [np.moveaxis(core, k, 0).reshape(core.shape[k], -1) for k in range(core.ndim)]
    vectors = [np.linalg.svd(matrix, full_matrices=False)[0][:, 0] for matrix in unfolded]
    for _ in range(_STEPS):
        for mode, matrix in enumerate(unfolded):
            rest = np.ones(1)
            for vector in vectors[:mode] + vectors[mode + 1 :]:
                rest = np.kron(rest, vector)
            found = matrix @ rest
            norm = float(np.linalg.norm(found))
            vectors[mode] = found / max(norm, 1e-300)
    return [*vectors[:-1], vectors[-1] * norm]


def _padded(given: Observed, network: Network) -> np.ndarray:
    """Coordinates with zeros for the modes of size 1 that a network has beyond the tensor's own."""
    return np.pad(given.coords, ((0, 0), (0, len(network.modes) - len(given.shape))))


def _or_largest(norms: np.ndarray) -> np.ndarray:
    """Places above zero, or that of the largest."""
    return np.flatnonzero(norms) if norms.any() else np.array([0])
