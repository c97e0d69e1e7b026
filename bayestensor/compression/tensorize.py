"""From a dense Flax model, trained or not, to one whose large weights are tensor networks, ready to fine-tune."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from bayestensor.compression.candidates import Candidates, Ranked, candidates
from bayestensor.compression.report import Change, Compression, compression, count, substitute
from bayestensor.tensor.decompose import Decomposition, decompose
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Key

Patterns = str | Sequence[str]
MOST_RANK = 4096
WIDE = 32  # modes are split to stay below


class Fitted(NamedTuple):
    """The network found for a dense weight, and its cores where they come from it."""

    format: str
    network: Network
    made: Decomposition | None


def tensorize(
    model: nnx.Module,
    *,
    include: Patterns = "*",
    exclude: Patterns = (),
    min_parameters: int = 1024,
    smaller: float = 4.0,
    tolerance: float | None = None,
    format: str | None = None,
    from_weights: bool = True,
    example: Any = None,
    key: Key[Array, ""] | None = None,
) -> Compression:
    """A copy of a model with tensor networks in place of its large dense weights.

    Flax's Linear, LinearGeneral (attention's projections), Conv and Embed are taken over, with their biases; modes are
    as equal as the widths' divisors allow, and a wide one that stays whole because it is prime is noted. Each format is
    tried at the largest rank that makes the weight `smaller` times smaller, and the one with the least
    `||W - network|| / ||W||` wins: by truncated SVDs where the network is a tree, by alternating least squares else.
    With no format named, a TT-matrix competes with a plain low-rank product, for a convolution with the Tucker-2 chain.
    Everything left dense is listed with its reason.

    Args:
        model: an nnx model; it stays as it is.
        include, exclude: globs on dotted paths ("encoder.*.query"): layers that match the first and not the second.
        min_parameters: layers with fewer stay dense.
        smaller: by which factor each weight must get smaller.
        tolerance: take the least rank whose relative error is at most this; a layer for which that is not `smaller`
            times smaller stays dense.
        format: the only format, a name in `FORMATS`.
        from_weights: whether cores come from the dense weights; else they are drawn anew, at the weights' variance.
        example: an input with which to count operations and to measure the latency, before and after.
        key: of random starts; `jax.random.key(0)` when None.

    Returns:
        The new model in `model`; prints as a table.

    Raises:
        ValueError: an unknown format, `smaller` not above 1, a tolerance outside 0 to 1, patterns that match nothing.
    """
    _check(smaller, tolerance, format)
    key = jax.random.key(0) if key is None else key
    copy = nnx.clone(model)
    layers = {".".join(map(str, path)) or "model": layer for path, layer in _owners(copy)}
    chosen = [name for name in layers if _matches(name, include) and not _matches(name, exclude)]
    if not chosen:
        raise ValueError(f"include={include!r}, exclude={exclude!r} select no layer; there are {', '.join(layers)}")
    new: dict[int, nnx.Module] = {}
    changes = []
    for number, (name, layer) in enumerate(layers.items()):
        own = count(layer)
        dense = Change(name, type(layer).__name__, "dense", own, own)
        found: Candidates | Fitted | str = "not selected"
        if name in chosen:
            found = candidates(layer, format) if own >= min_parameters else f"below {min_parameters:,} parameters"
        if isinstance(found, Candidates):
            options, (layer_key, rngs_key) = found, jax.random.split(jax.random.fold_in(key, number))
            found = _best(options, smaller, tolerance, from_weights, layer_key)
            if isinstance(found, Fitted):
                new[id(layer)] = built = _built(options, found, layer, nnx.Rngs(rngs_key))
                error = None if found.made is None else found.made.relative_error
                ranks = found.network.ranks
                made = replace(dense, format=found.format, after=count(built), ranks=ranks, error=error)
                changes.append(replace(made, note=_unsplit(options, found.network)))
                continue
        changes.append(replace(dense, note=str(found)))
    return compression(model, substitute(copy, new), changes, example)


def _owners(model: nnx.Module) -> Iterator[tuple[tuple, nnx.Module]]:
    """Modules that own parameters themselves, each once."""
    for path, module in nnx.iter_modules(model):
        if any(isinstance(value, nnx.Param) for value in vars(module).values()):
            yield path, module


def _matches(name: str, patterns: Patterns) -> bool:
    return any(fnmatchcase(name, p) for p in ([patterns] if isinstance(patterns, str) else patterns))


def _best(
    options: Candidates, smaller: float, tolerance: float | None, from_weights: bool, key: Key[Array, ""]
) -> Fitted | str:
    """The network with the least error within the budget, or with the fewest parameters within the tolerance."""
    budget = int(options.matrix.size / smaller)
    ranks = {name: _largest_rank(make, budget) for name, make in options.networks.items()}
    ranks = {name: rank for name, rank in ranks.items() if rank}
    if not ranks:
        widths = " x ".join(map(str, options.matrix.shape))
        return f"{widths} in rank 1 is not {smaller:g} times smaller"
    fitted = []
    for name, most in ranks.items():
        make = options.networks[name]
        if not from_weights:
            fitted.append(Fitted(name, make(most), None))
        elif tolerance is None:
            fitted.append(Fitted(name, make(most), _decomposed(options.matrix, make(most), key)))
        else:
            fitted.append(_least(options.matrix, name, make, most, tolerance, key))
    if not from_weights:
        return fitted[0]
    error = min(fit.made.relative_error for fit in fitted if fit.made)
    if tolerance is None:
        return min(fitted, key=lambda fit: fit.made.relative_error if fit.made else np.inf)
    if error > tolerance:
        return f"relative error {error:.3f} where {smaller:g} times smaller; the tolerance is {tolerance:g}"
    good = [fit for fit in fitted if fit.made and fit.made.relative_error <= tolerance]
    return min(good, key=lambda fit: fit.network.num_parameters)


def _largest_rank(make: Ranked, budget: int) -> int:
    """The largest rank within a budget of parameters, 0 where there is none, MOST_RANK where ranks stop growing."""
    low, high = 0, MOST_RANK
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if make(middle).num_parameters <= budget else (low, middle - 1)
    return low


def _least(matrix: np.ndarray, name: str, make: Ranked, most: int, tolerance: float, key: Key[Array, ""]) -> Fitted:
    """The least rank within the tolerance, by bisection; the largest where none is."""
    low, best = 1, Fitted(name, make(most), _decomposed(matrix, make(most), key))
    if best.made is None or best.made.relative_error > tolerance:
        return best
    while low < most:
        middle = (low + most) // 2
        made = _decomposed(matrix, make(middle), key)
        if made.relative_error <= tolerance:
            most, best = middle, Fitted(name, make(middle), made)
        else:
            low = middle + 1
    return best


def _decomposed(matrix: np.ndarray, network: Network, key: Key[Array, ""]) -> Decomposition:
    """A table may have fewer rows than its network: those that nobody looks up are zero."""
    missing = network.matrix_shape[0] - len(matrix)
    return decompose(np.pad(matrix, ((0, missing), (0, 0))), network, key=key)


def _unsplit(options: Candidates, network: Network) -> str:
    """What is to say of modes that divisors do not give."""
    rows = len(options.matrix)
    if network.matrix_shape[0] > rows:
        return f"{rows:,} rows in a table of {network.matrix_shape[0]:,}, which factorises"
    sizes = {network.size[mode] for mode in network.modes}
    prime = sorted(n for n in sizes if n > WIDE and all(n % k for k in range(2, math.isqrt(n) + 1)))
    return f"{' and '.join(map(str, prime))}: prime, one mode" if prime else ""


def _built(options: Candidates, found: Fitted, layer: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
    """The tensorized layer, cores and biases in it."""
    variance = float(np.mean(np.square(options.matrix, dtype=np.float64))) or 1.0
    built: Any = options.build(found.network, variance=variance, rngs=rngs)
    if found.made is not None:
        for name, core in found.made.tensor.cores.items():
            getattr(built, options.weight).cores[name][...] = core
    if getattr(layer, "bias", None) is not None:
        built.bias[...] = layer.bias[...].reshape(built.bias.shape)  # type: ignore[attr-defined]
    return built


def _check(smaller: float, tolerance: float | None, format: str | None) -> None:
    if format is not None and format not in FORMATS:
        raise ValueError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    if not smaller > 1:
        raise ValueError(f"smaller is {smaller!r}; it is the factor by which each weight shrinks, above 1")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}; a relative error between 0 and 1 is expected")
