"""Recurrent cells whose gates are stacked in one network: Flax's cells with tensorized weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.linear import Linear
from bayestensor.tensor.contract import matrix
from bayestensor.tensor.network import Network
from bayestensor.tensor.plan import plan_matvec
from bayestensor.typing import Array, Bool, Float


class LSTMCell(nnx.OptimizedLSTMCell):
    """`i, f, g, o = W_i x + W_h h + bias`, `c' = sig(f) c + sig(i) tanh(g)`, `h' = sig(o) tanh(c')`.

    Flax's `OptimizedLSTMCell`, also under `nnx.RNN`, with its two kernels as networks.

    Args:
        input_network: W_i, (4 hidden, in), the four gates stacked.
        hidden_network: W_h, (4 hidden, hidden).
        rngs: Flax's random streams.

    Raises:
        ValueError: sizes that do not belong together.
    """

    gates = 4

    def __init__(self, input_network: Network, hidden_network: Network, *, rngs: nnx.Rngs):
        _start(self, input_network, hidden_network, (False, True), rngs)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs=None, carry_init=None):
        """(c, h), zeros: no random stream is needed."""
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features))
        return zeros, zeros


class GRUCell(nnx.GRUCell):
    """`r = sig(a_r + b_r)`, `z = sig(a_z + b_z)`, `n = tanh(a_n + r b_n)`, `h' = (1 - z) n + z h`, with the gates
    stacked in `a = W_i x + bias`, `b = W_h h`.

    Flax's `GRUCell`, also under `nnx.RNN`, with its two kernels as networks.

    Args:
        input_network: W_i, (3 hidden, in).
        hidden_network: W_h, (3 hidden, hidden).
        rngs: Flax's random streams.

    Raises:
        ValueError: sizes that do not belong together.
    """

    gates = 3

    def __init__(self, input_network: Network, hidden_network: Network, *, rngs: nnx.Rngs):
        _start(self, input_network, hidden_network, (True, False), rngs)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs=None, carry_init=None):
        """H, zeros: no random stream is needed."""
        return jnp.zeros((*input_shape[:-1], self.hidden_features))


def _start(cell, input_network: Network, hidden_network: Network, biases: tuple[bool, bool], rngs: nnx.Rngs) -> None:
    """The attributes of Flax's cell, its two layers tensorized; biases are where Flax has them."""
    (out, into), (rows, hidden) = input_network.matrix_shape, hidden_network.matrix_shape
    if out != rows or rows != cell.gates * hidden:
        raise ValueError(
            f"the input network has {out} rows, the hidden network {rows} and {hidden} columns; both must have "
            f"{cell.gates} x hidden rows, and the hidden network hidden columns"
        )
    cell.in_features, cell.hidden_features = into, hidden
    cell.gate_fn, cell.activation_fn = jax.nn.sigmoid, jnp.tanh
    cell.dense_i = Linear(input_network, use_bias=biases[0], variance=1 / into, rngs=rngs)
    cell.dense_h = Linear(hidden_network, use_bias=biases[1], variance=1 / hidden, rngs=rngs)


def recur(
    cell,
    x: Float[Array, "batch time in"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
    reverse: bool = False,
) -> Float[Array, "batch time hidden"]:
    """Outputs of a cell after each step of x, from a zero carry.

    One `lax.scan` over the weights as they are, where `nnx.RNN` lifts the module into it. The product with x is taken
    for all steps at once, and W_h is formed once for all steps where that is counted cheaper.

    Args:
        cell: ours, or Flax's `OptimizedLSTMCell` or `GRUCell`.
        x: inputs.
        mask: where False (padding) the step gives zeros and leaves a zero carry.
        reverse: read x from its end; outputs stay at their inputs' places.
    """
    carry = cell.initialize_carry((x.shape[0], x.shape[2]), nnx.Rngs(0))  # zeros; only Flax's cells ask for a stream
    carry = jax.tree.map(lambda part: part.astype(x.dtype), carry)
    real = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
    ahead = SimpleNamespace(
        dense_i=lambda product: product,
        dense_h=_formed(cell.dense_h, x.shape[0] * x.shape[1]),
        gate_fn=cell.gate_fn,
        activation_fn=cell.activation_fn,
    )

    def step(carry, at):
        product, keep = at
        after = type(cell).__call__(ahead, carry, product)  # the cell's own equations
        return jax.tree.map(lambda part: part * jnp.broadcast_to(keep[:, None], part.shape), after)

    _, outputs = jax.lax.scan(step, carry, (cell.dense_i(x).swapaxes(0, 1), real.T), reverse=reverse)
    return outputs.swapaxes(0, 1)


def _formed(layer: nnx.Module, rows: int) -> Callable[[Array], Array]:
    """The layer with its matrix formed beforehand, where that is counted cheapest for so many rows in all."""
    if not isinstance(layer, Linear) or not plan_matvec(layer.kernel.network, rows).densify:
        return layer
    kernel = matrix(layer.kernel.tensor).T
    bias = jnp.zeros(layer.out_features, kernel.dtype) if layer.bias is None else layer.bias[...]
    return lambda h: h @ kernel + jnp.broadcast_to(bias, (*h.shape[:-1], layer.out_features))
