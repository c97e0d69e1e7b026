"""What a chain costs: operations, memory traffic of its intermediates, and overhead an operation.

The constants are those of two x86 cores with AVX-512 under XLA's CPU compiler, measured one core at a time
(experiments/layer_speed); only their ratios matter to the choice, and `plan_by_timing` is there for machines whose
ratios differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from bayestensor.tensor.lower import BATCH, Step
from bayestensor.tensor.network import Network
from bayestensor.tensor.paths import contraction_path

FLOP = 1 / 130e9  # s an operation inside a matrix product
COPY = 1e-9  # s an entry that is transposed by a loop
SPREAD = 0.2e-9  # s an entry of a factor repeated for every product of a batch of them
GATHER = 4e-9  # s an entry of such a factor's gradient, added up over the batch
KEEP = 3e-9  # s an entry that a turn of a loop leaves for the gradient: written into a slice and read from it
BYTE = (
    (2**19, 1 / 80e9),
    (2**21, 1 / 40e9),
    (2**22, 1 / 20e9),
    (2**63, 1 / 5e9),
)  # array up to so many bytes, s a byte written and read
OP = 0.7e-6  # s to start one operation
CALL = 0.25e-6  # s to start one matrix product of a batch of them
TURN = 1.5e-6  # s for one turn of a loop


def _product_seconds(flops: int) -> float:
    """A matrix product; measured, a second core gains nothing up to 128 million operations and 2x at 2,000 million."""
    second = min(1.0, max(0.0, math.log2(max(flops, 1) / 128e6) / 4)) if processors() > 1 else 0.0
    return flops * FLOP / (1 + second)


def processors() -> int:
    """Processor cores that this process may run on, and XLA with it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _traffic(count: float) -> float:
    """Seconds to write that many bytes and read them again: from the core's cache, from a shared one, from memory."""
    return count * next(seconds for limit, seconds in BYTE if count <= limit)


@dataclass(frozen=True)
class Cost:
    """Seconds, and operations of the forward pass.

    Args:
        flops: additions and multiplications, forward.
        forward: seconds forward.
        backward: seconds for the gradient, with the intermediates at hand.
        keep: seconds to write the intermediates where the gradient finds them.
        again: seconds to compute them again instead.
    """

    flops: int
    forward: float
    backward: float
    keep: float
    again: float


def chain_cost(
    network: Network, steps: tuple[Step, ...], batch: int, tile: int | None, itemsize: int, backward: bool
) -> Cost:
    """Cost of a chain that runs `batch / tile` times over tiles of the batch, or once."""
    size = network.size | {BATCH: tile or batch}
    turns = batch // tile if tile else 1
    forming = [_forming(network, step.group, step.factor) for step in steps]
    once_flops = sum(flops for flops, _, _ in forming)
    once = sum(_forming_seconds(*f, itemsize) for f in forming)
    forward = [_step_seconds(step, size, itemsize, gradient=False) for step in steps]
    ends = _end_seconds(network, steps, size)
    there = sum(forward) + ends
    per_turn = there * turns + (TURN * turns if tile else 0)
    back = 0.0
    if backward:
        back = sum(_step_seconds(step, size, itemsize, gradient=True) for step in steps) + ends
        if tile:  # the gradients of the factors are added up turn by turn
            grown = sum(math.prod(size[leg] for leg in step.factor) for step in steps)
            back += TURN + _traffic(3 * itemsize * grown)
        back = back * turns + 2 * once
    kept = turns * sum(math.prod(size[leg] for leg in step.result) for step in steps[:-1])
    again = turns * sum(forward[:-1])  # no gradient needs the last product
    flops = once_flops + turns * sum(2 * math.prod(size[leg] for leg in _all_legs(step)) for step in steps)
    return Cost(flops, once + per_turn, back, KEEP * kept if tile else 0.0, again)


def _all_legs(step: Step) -> tuple[str, ...]:
    return tuple(dict.fromkeys(step.source + step.factor))


def _step_seconds(step: Step, size: Mapping[str, int], itemsize: int, gradient: bool) -> float:
    """One step forward, or the two products of its gradient."""
    products = 2 if gradient else 1
    source, result, factor = (math.prod(size[leg] for leg in x) for x in (step.source, step.result, step.factor))
    work = 2 * math.prod(size[leg] for leg in _all_legs(step))
    seconds = products * (_product_seconds(work) + OP + _traffic(source * itemsize) + _traffic(result * itemsize))
    if step.kind == "middle" and step.sizes(size)[0] > 1:
        p = step.sizes(size)[0]
        seconds += products * (p * CALL + _traffic(p * factor * itemsize)) + p * factor * (
            GATHER if gradient else SPREAD
        )
    elif step.kind == "general":
        seconds += products * COPY * (source + result)
    return seconds


def _end_seconds(network: Network, steps: tuple[Step, ...], size: Mapping[str, int]) -> float:
    """Transposes of x and y where the batch is not in front."""
    seconds = 0.0
    if steps[0].source[0] != BATCH and size[BATCH] > 1:
        seconds += COPY * math.prod(size[leg] for leg in steps[0].source)
    ends = (BATCH, *network.rows)
    if not _same_order(steps[-1].result, ends, size):
        seconds += COPY * math.prod(size[leg] for leg in ends)
    return seconds


def _same_order(a: tuple[str, ...], b: tuple[str, ...], size: Mapping[str, int]) -> bool:
    return [leg for leg in a if size[leg] > 1] == [leg for leg in b if size[leg] > 1]


def _forming_seconds(flops: int, traffic: int, products: int, itemsize: int) -> float:
    return _product_seconds(flops) + products * OP + traffic * COPY + _traffic(traffic * itemsize)


def chain_flops(network: Network, groups: tuple[tuple[str, ...], ...], batch: int) -> int:
    """Additions and multiplications of a chain, whatever its layout."""
    size = network.size | {BATCH: batch}
    held = {BATCH, *network.cols}
    total = 0
    for number, group in enumerate(groups):
        later = {leg for other in groups[number + 1 :] for name in other for leg in network.core[name].legs}
        own = {leg for name in group for leg in network.core[name].legs}
        factor = {leg for leg in own if leg in held or leg in later or leg in network.rows}
        total += _forming(network, group, tuple(sorted(factor)))[0]
        total += 2 * math.prod(size[leg] for leg in held | factor)
        held = {leg for leg in held | factor if leg in later or leg == BATCH or leg in network.rows}
    return total


def _forming(network: Network, group: tuple[str, ...], factor: tuple[str, ...]) -> tuple[int, int, int]:
    """(operations, entries written, products) of contracting a group of cores into its factor."""
    legs = tuple(network.core[name].legs for name in group)
    sizes = tuple(tuple(network.size[leg] for leg in term) for term in legs)
    return product_counts(legs, sizes, factor)


@lru_cache(maxsize=16384)
def product_counts(
    legs: tuple[tuple[str, ...], ...], shapes: tuple[tuple[int, ...], ...], output: tuple[str, ...]
) -> tuple[int, int, int]:
    """(operations, entries written, products) of a contraction in the order of fewest operations.

    A product over the union U of two arrays' legs counts prod(U), and as much again if it sums over any of them.
    """
    if len(legs) == 1:
        return 0, 0, 0
    size = {leg: n for term, shape in zip(legs, shapes, strict=True) for leg, n in zip(term, shape, strict=True)}
    terms = [set(term) for term in legs]
    flops = entries = products = 0
    for pair in contraction_path(legs, shapes, output):
        taken = [terms.pop(k) for k in sorted(pair, reverse=True)]
        union = set().union(*taken)
        left = union & set(output).union(*terms)
        flops += math.prod(size[leg] for leg in union) * (2 if union - left else 1)
        entries += math.prod(size[leg] for leg in left)
        products += 1
        terms.append(left)
    return flops, entries, products
