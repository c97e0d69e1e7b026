"""Bad input x the message it gets: what was given, what was expected; and the shapes that plain sizes become."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.tensor.contract import bond_energy, entries, inner, matvec, slice_norms
from bayestensor.tensor.formats import FORMATS, block_term, cp, factorize, matrix_shapes, tensor_ring, tensor_train
from bayestensor.tensor.initialise import core_variance, initialise
from bayestensor.tensor.network import Core, Network, factored
from bayestensor.tensor.surgery import keep, keep_network, pad

SIZES = {"x": 2, "y": 3, "r": 4}
PAIR = (Core("a", ("x", "r")), Core("b", ("y", "r")))


def network(cores=PAIR, sizes=SIZES, rows=("x",), cols=("y",)):
    return Network(cores, sizes, rows, cols)


def tensor():
    return initialise(jax.random.key(0), network())


def energy(bond, cores=PAIR):
    net = network(cores)
    return bond_energy(net, tensor().cores, {"r": jnp.ones(4)}, bond, 1.0)


TWICE = (Core("a", ("x", "r"), ("r", "r")), Core("b", ("y", "r")))

BAD = {
    # a network
    "negative size": (lambda: network(sizes=SIZES | {"r": -1}), ["'r'", "-1", "at least 1"]),
    "size of zero": (lambda: network(sizes=SIZES | {"r": 0}), ["'r'", "is 0"]),
    "fractional size": (lambda: network(sizes=SIZES | {"r": 2.5}), ["'r'", "2.5", "whole numbers"]),
    "size that is a bool": (lambda: network(sizes=SIZES | {"r": True}), ["'r'", "True"]),
    "two cores of a name": (lambda: network((PAIR[0], Core("a", ("y", "r")))), ["core ['a']", "named twice"]),
    "a leg twice on a core": (lambda: network((Core("a", ("x", "r", "r")), PAIR[1])), ["'a'", "['r']", "named twice"]),
    "a mode twice": (lambda: network(cols=("y", "x")), ["mode ['x']", "named twice"]),
    "no core": (lambda: network(()), ["at least one core"]),
    "leg without a size": (lambda: network(sizes={"x": 2, "y": 3}), ["'a'", "['r']", "['x', 'y']"]),
    "mode on no core": (lambda: network(sizes=SIZES | {"z": 2}, cols=("y", "z")), ["['z']", "on no core"]),
    "size for no leg": (lambda: network(sizes=SIZES | {"q": 2}), ["['q']", "on no core"]),
    "shrunk by a mode": (lambda: network((Core("a", ("x", "r"), ("x",)), PAIR[1])), ["'a'", "['x']", "('r',)"]),
    "shrunk by a stranger": (lambda: network((Core("a", ("x", "r"), ("q",)), PAIR[1])), ["['q']", "('r',)"]),
    "leg that is no identifier": (lambda: network(sizes=SIZES | {"r'": 2}), ['"r\'"', "Python variables"]),
    "leg called batch": (lambda: network(sizes=SIZES | {"batch": 2}), ["'batch'"]),
    "resize of an unknown leg": (lambda: network().resized({"q": 2}), ["['q']", "['r', 'x', 'y']"]),
    "count of an unknown bond": (lambda: network().bond_count("q"), ["'q'", "['r']"]),
    # arrays
    "missing core": (lambda: factored(network(), {"a": np.ones((2, 4))}), ["['a']", "['a', 'b']"]),
    "transposed core": (
        lambda: factored(network(), {"a": np.ones((4, 2)), "b": np.ones((3, 4))}),
        ["'a'", "(4, 2)", "(2, 4)", "('x', 'r')"],
    ),
    "variance of zero": (lambda: core_variance(network(), 0.0), ["positive", "0.0"]),
    "variance that is NaN": (lambda: core_variance(network(), math.nan), ["positive", "nan"]),
    "infinite variance": (lambda: core_variance(network(), math.inf), ["finite", "inf"]),
    # queries
    "matvec of a wrong length": (lambda: matvec(tensor(), jnp.ones((5, 2))), ["(5, 2)", "must be 3"]),
    "matvec of a number": (lambda: matvec(tensor(), jnp.ones(())), ["()", "must be 3"]),
    "coordinates of too few modes": (lambda: entries(tensor(), jnp.zeros((5, 1), int)), ["(5, 1)", "2 modes"]),
    "coordinates without a batch": (lambda: entries(tensor(), jnp.zeros(2, int)), ["(2,)", "2 modes"]),
    "inner product of strangers": (
        lambda: inner(tensor(), initialise(jax.random.key(0), cp((2,), (3,), 4))),
        ["'x': 2", "'i0': 2", "agree"],
    ),
    "slice norms of a mode": (lambda: slice_norms(tensor(), "x"), ["'x'", "no bond", "['r']"]),
    "energy of an unknown bond": (lambda: energy("q"), ["'q'", "no bond", "['r']"]),
    "energy of a bond that shrinks twice": (lambda: energy("r", TWICE), ["'a'", "2 times", "'r'"]),
    # formats
    "no mode": (lambda: cp(()), ["at least one row or column"]),
    "empty mode": (lambda: tensor_train((2, 0)), ["size 0", "at least 1"]),
    "negative mode": (lambda: block_term((2,), (-3,)), ["size -3", "at least 1"]),
    "negative rank": (lambda: cp((2, 3), (), -1), ["rank is -1", "'full'"]),
    "negative rank, nothing to bind": (lambda: tensor_ring((3,), (), -1), ["rank is -1"]),
    "misspelt rank": (lambda: cp((2, 3), (), "ful"), ["'ful'", "'full'"]),
    "fractional rank": (lambda: cp((2, 3), (), 2.5), ["2.5", "whole number"]),
    "rank of a stranger": (lambda: tensor_train((2, 3), (), {"r0": 2}), ["['r0']", "['b1']"]),
    "negative rank in a mapping": (lambda: tensor_train((2, 3), (), {"b1": -2}), ["'b1'", "-2"]),
    "unpaired TT-matrix": (lambda: FORMATS["tt_matrix"]((2, 3), (4,)), ["2 row modes (2, 3)", "1 (4,)"]),
    "nothing to factorize": (lambda: factorize(0, 2), ["0", "at least 1"]),
    "into no factor": (lambda: factorize(6, 0), ["0 factors", "at least 1"]),
    # surgery
    "keep of a mode": (lambda: keep(tensor(), {"x": np.array([0])}), ["'x'", "['r']"]),
    "keep nothing": (lambda: keep(tensor(), {"r": np.array([], int)}), ["'r'", "at least one"]),
    "keep above the size": (lambda: keep_network(network(), {"r": np.array([0, 4])}), ["[0, 4]", "below 4"]),
    "keep below zero": (lambda: keep_network(network(), {"r": np.array([-1])}), ["[-1]", "below 4"]),
    "keep twice": (lambda: keep_network(network(), {"r": np.array([1, 1])}), ["[1, 1]", "differ"]),
    "keep by a mask": (lambda: keep_network(network(), {"r": np.array([True] * 4)}), ["bool", "np.flatnonzero"]),
    "keep by fractions": (lambda: keep_network(network(), {"r": np.array([0.0])}), ["float64", "whole indices"]),
    "keep a table": (lambda: keep_network(network(), {"r": np.array([[0, 1]])}), ["'r'"]),
    "pad of a mode": (lambda: pad(tensor(), {"y": 5}), ["'y'", "['r']"]),
    "pad that shrinks": (lambda: pad(tensor(), {"r": 3}), ["'r'", "4 indices", "to 3"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what):
    act, fragments = BAD[what]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the fragments below are the match
        act()
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "\n" not in message
    assert len(message) < 200


def test_the_good_twin_of_the_table_passes():
    """Every fault above starts from this network: it raises nothing."""
    net, whole = network(), tensor()
    assert re.fullmatch("ab", "".join(whole.cores))
    assert net.bond_count("r") == 5
    assert keep(whole, {"r": np.array([3, 0])}).network.ranks == {"r": 2}
    assert pad(whole, {"r": 4}).network == net
    assert energy("r").shape == (4,)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 625, 784, 1024, 4096, 30_000])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_factorize_is_the_most_even_split(size, order):
    parts = factorize(size, order)
    assert math.prod(parts) == size
    assert len(parts) == order
    assert list(parts) == sorted(parts, reverse=True)
    assert sum(parts) == smallest_sum(size, order)


def smallest_sum(size: int, order: int) -> int:
    if order == 1:
        return size
    divisors = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    return min(d + smallest_sum(size // d, order - 1) for d in {*divisors, *(size // d for d in divisors)})


@pytest.mark.parametrize(("rows", "cols"), [(625, 784), (10, 625), (1024, 1024), (4096, 4096), (3, 5), (1, 300)])
def test_matrix_shapes(rows, cols):
    row_modes, col_modes = matrix_shapes(rows, cols)
    assert (math.prod(row_modes), math.prod(col_modes)) == (rows, cols)
    assert len(row_modes) == len(col_modes)
    assert max(*row_modes, *col_modes) < 32
    FORMATS["tt_matrix"](row_modes, col_modes, 2)
