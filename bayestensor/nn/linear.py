"""Linear layers and the multilayer perceptron made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.remat import called
from bayestensor.nn.weight import TensorWeight
from bayestensor.tensor.contract import matvec
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Float

ACTIVATIONS: dict[str, Callable] = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "silu": jax.nn.silu}


class Linear(nnx.Module):
    """`y = W x + bias` with W (out, in) a tensor network; calls like `flax.nnx.Linear`.

    Args:
        network: what W is; its rows multiply to out_features, its columns to in_features.
        use_bias: whether to add a bias.
        variance: of an entry of W at the start; 2 / in_features when None (He et al. 2015).
        rngs: Flax's random streams.
    """

    def __init__(self, network: Network, *, use_bias: bool = True, variance: float | None = None, rngs: nnx.Rngs):
        self.out_features, self.in_features = network.matrix_shape
        self.kernel = TensorWeight(network, 2 / self.in_features if variance is None else variance, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(self.out_features)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """The layer's output."""
        y = matvec(self.kernel.tensor, x)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)


class MLP(nnx.Module):
    """Linear layers with an activation between them.

    Args:
        layers: one entry a layer: a `Network`, or a pair (in_features, out_features) for a dense one.
        activation: one of `ACTIVATIONS`.
        use_bias: one entry a layer.
        rngs: Flax's random streams.

    Raises:
        ValueError: no layer, an unknown activation, not one bias a layer, or layers whose sizes do not chain.
    """

    def __init__(
        self,
        layers: Sequence[Network | tuple[int, int]],
        *,
        activation: str = "relu",
        use_bias: Sequence[bool] | None = None,
        rngs: nnx.Rngs,
    ):
        use_bias = [True] * len(layers) if use_bias is None else use_bias
        _check(layers, activation, use_bias)
        self.activation, self.rematerialise = activation, False
        self.layers = nnx.List(
            Linear(layer, use_bias=bias, rngs=rngs)
            if isinstance(layer, Network)
            else nnx.Linear(*layer, use_bias=bias, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
            for layer, bias in zip(layers, use_bias, strict=True)
        )

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Logits (or means): no activation after the last layer."""
        activate = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            x = called(lambda layer, x: activate(layer(x)), self.rematerialise, layer, x)
        return self.layers[-1](x)


def _check(layers: Sequence[Network | tuple[int, int]], activation: str, use_bias: Sequence[bool]) -> None:
    if not layers or len(layers) != len(use_bias):
        raise ValueError(f"{len(layers)} layers and {len(use_bias)} of use_bias; at least one layer, and one each")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it is one of {', '.join(ACTIVATIONS)}")
    sizes = [layer.matrix_shape[::-1] if isinstance(layer, Network) else layer for layer in layers]
    for k, ((_, out), (into, _)) in enumerate(itertools.pairwise(sizes)):
        if out != into:
            raise ValueError(f"layer {k} has {out} outputs and layer {k + 1} takes {into}; they must agree")
