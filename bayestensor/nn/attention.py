"""Attention whose projections are tensor networks, and the Transformer's block."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flax import nnx

from bayestensor.nn.linear import MLP, Linear
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Bool, Float


class LinearGeneral(Linear):
    """A `Linear` over several axes: the last axes `in_shape` of x become `out_shape`; calls like Flax's.

    Args:
        network: (product of out_shape, product of in_shape).
        in_shape: axes taken.
        out_shape: axes given.
        use_bias, variance, rngs: as in `Linear`; the bias has the shape `out_shape`.

    Raises:
        ValueError: shapes whose products are not the network's.
    """

    def __init__(
        self,
        network: Network,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        use_bias: bool = True,
        variance: float | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(network, use_bias=use_bias, variance=variance, rngs=rngs)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if (math.prod(self.out_shape), math.prod(self.in_shape)) != network.matrix_shape:
            raise ValueError(
                f"shapes {self.in_shape} -> {self.out_shape} on a network of matrix shape {network.matrix_shape}; "
                "their products must be its columns and rows"
            )

    def __call__(self, x: Array, out_sharding=None) -> Array:
        """The layer's output."""
        batch = x.shape[: x.ndim - len(self.in_shape)]
        y = super().__call__(x.reshape(*batch, math.prod(self.in_shape)))
        return y.reshape(*batch, *self.out_shape)


class MultiHeadAttention(nnx.MultiHeadAttention):
    """Flax's `MultiHeadAttention` (masks, dropout, cache and all) with its four projections as networks.

    Args:
        num_heads: of the attention.
        query, key, value: (heads * depth, features) each; key and value are as query when None.
        out: (features, heads * depth).
        use_bias: whether the projections have biases.
        rngs: Flax's random streams.
        options: what else Flax's layer takes, dropout_rate for one.

    Raises:
        ValueError: rows that the heads do not divide.
    """

    def __init__(
        self,
        num_heads: int,
        query: Network,
        key: Network | None = None,
        value: Network | None = None,
        *,
        out: Network,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **options,
    ):
        networks = {"query": query, "key": key or query, "value": value or query}
        width, features = query.matrix_shape
        if width % num_heads:
            raise ValueError(f"{num_heads} heads on a query of {width} rows; the rows are the heads times their depth")
        defaults = {"decode": False, "keep_rngs": bool(options.get("dropout_rate"))}
        super().__init__(
            num_heads,
            features,
            width,
            out.matrix_shape[0],
            in_kv_features=networks["key"].matrix_shape[1],
            use_bias=use_bias,
            rngs=rngs,
            **(defaults | options),
        )
        heads = (num_heads, width // num_heads)
        for name, network in (networks | {"out": out}).items():
            rows, cols = network.matrix_shape
            shapes = (heads, (rows,)) if name == "out" else ((cols,), heads)
            setattr(self, name, LinearGeneral(network, *shapes, use_bias=use_bias, variance=1 / cols, rngs=rngs))


class TransformerBlock(nnx.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))` (pre-norm: Xiong et al. 2020).

    Args:
        attention: from features to features.
        feed_forward: from features to features; an `MLP` of two layers, as a rule.
        features: width of x.
        rngs: Flax's random streams.
    """

    def __init__(self, attention: nnx.MultiHeadAttention, feed_forward: MLP, features: int, *, rngs: nnx.Rngs):
        self.attention, self.feed_forward = attention, feed_forward
        self.norms = nnx.List(nnx.LayerNorm(features, rngs=rngs) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "*batch time features"],
        mask: Bool[Array, "*batch #heads #time time"] | None = None,
        *,
        is_causal: bool = False,
    ) -> Float[Array, "*batch time features"]:
        """The block's output; `mask` is True where a query (third axis) may look at a key (last axis)."""
        x = x + self.attention(self.norms[0](x), mask=mask, is_causal=is_causal)
        return x + self.feed_forward(self.norms[1](x))
