"""The pairwise order of a plain contraction."""

from __future__ import annotations

from functools import lru_cache

import opt_einsum


def contraction_path(
    legs: tuple[tuple[str, ...], ...], shapes: tuple[tuple[int, ...], ...], output: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    """The pairwise order with the fewest operations, by dynamic programming (greedy above 16 arrays)."""
    return _searched(legs, shapes, output)[0]


def path_cost(
    legs: tuple[tuple[str, ...], ...], shapes: tuple[tuple[int, ...], ...], output: tuple[str, ...]
) -> tuple[int, int]:
    """(additions and multiplications in that order, entries of the largest product)."""
    return _searched(legs, shapes, output)[1:]


@lru_cache(maxsize=4096)
def _searched(
    legs: tuple[tuple[str, ...], ...], shapes: tuple[tuple[int, ...], ...], output: tuple[str, ...]
) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    number = {leg: k for k, leg in enumerate(dict.fromkeys(leg for term in legs for leg in term))}
    symbols = {leg: opt_einsum.get_symbol(k) for leg, k in number.items()}
    equation = ",".join("".join(symbols[leg] for leg in term) for term in legs)
    equation += "->" + "".join(symbols[leg] for leg in output)
    search = "dp" if len(legs) <= 16 else "greedy"
    path, found = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=search)
    return tuple(path), int(found.opt_cost), int(found.largest_intermediate)
