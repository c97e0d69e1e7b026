"""What a model costs: counted parameters, bytes and operations, and measured time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bayestensor.tensor.network import Network
from bayestensor.tensor.plan import contraction_path

__all__ = ["Cost", "dense_twin", "latency", "matvec_flops", "model_cost"]


class Cost(NamedTuple):
    """Counts of a model; `flops` are those of one forward pass of `batch` data, a multiplication and an addition 2."""

    parameters: int
    bytes: int
    flops: int


def matvec_flops(network: Network, batch: int = 1) -> int:
    """Operations of `matvec` on `batch` vectors in its contraction order: `2 prod(legs of each pair)`, summed."""
    terms = [("batch", *network.cols), *(core.legs for core in network.cores)]
    size = network.size | {"batch": batch}
    shapes = tuple(tuple(size[leg] for leg in term) for term in terms)
    output = ("batch", *network.rows)
    flops = 0
    for step in contraction_path(tuple(terms), shapes, output):
        joined = {leg for k in step for leg in terms[k]}
        terms = [term for k, term in enumerate(terms) if k not in step]
        kept = joined & {leg for term in (*terms, output) for leg in term}
        flops += (2 if joined - kept else 1) * math.prod(
            size[leg] for leg in joined
        )  # an outer product only multiplies
        terms.append(tuple(sorted(kept)))
    return flops


def model_cost(layers: Sequence[Network | tuple[int, int]], biases: int = 0, batch: int = 1, itemsize: int = 4) -> Cost:
    """Cost of a chain of linear layers, each a network or the (rows, columns) of a dense matrix.

    Args:
        layers: applied once each to every datum.
        biases: how many numbers are added after the products, one addition a datum each.
        batch: data in one forward pass.
        itemsize: bytes a parameter.

    Raises:
        ValueError: a count below what is possible.
    """
    for name, value, least in (("biases", biases, 0), ("batch", batch, 1), ("itemsize", itemsize, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; at least {least} is needed")
    parameters, flops = biases, biases * batch
    for layer in layers:
        if isinstance(layer, Network):
            parameters += layer.num_parameters
            flops += matvec_flops(layer, batch)
        else:
            rows, cols = layer
            parameters += rows * cols
            flops += 2 * batch * rows * cols
    return Cost(parameters, parameters * itemsize, flops)


def dense_twin(layers: Sequence[Network | tuple[int, int]]) -> list[tuple[int, int]]:
    """The same layers as dense matrices: what a compression is counted against."""
    return [layer.matrix_shape if isinstance(layer, Network) else layer for layer in layers]


def latency(function: Callable[..., Any], *args: Any, repeats: int = 20, warmup: int = 2) -> float:
    """Median seconds of `function(*args)` until its arrays are there, after `warmup` calls that compile."""
    import jax

    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}; at least 1 and 0 are needed")
    for _ in range(warmup):
        jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
