"""Sequences of tokens: a bidirectional LSTM and a Transformer encoder that classify them (token 0 being padding), and
a Transformer decoder that tells the next one."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.attention import MultiHeadAttention, TransformerBlock
from bayestensor.nn.embedding import Embed
from bayestensor.nn.linear import MLP, Linear
from bayestensor.nn.recurrent import LSTMCell, recur
from bayestensor.tensor.network import Network
from bayestensor.tensor.sized import embed_network, linear_network
from bayestensor.typing import Array, Bool, Float, Int


class BiLSTM(nnx.Module):
    """`head(mean over tokens of [LSTM forwards, LSTM backwards])` of an embedding.

    Args:
        embed: from tokens to features: an `Embed` or `nnx.Embed`.
        forwards, backwards: cells: `LSTMCell`, `GRUCell` or Flax's own.
        head: from 2 x hidden to classes.
    """

    def __init__(self, embed: nnx.Module, forwards: nnx.Module, backwards: nnx.Module, head: nnx.Module):
        self.embed, self.forwards, self.backwards, self.head = embed, forwards, backwards, head

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch classes"]:
        """Logits. What padding holds changes nothing: carries are zeroed at it, and it is left out of the mean."""
        real, x = tokens > 0, self.embed(tokens)
        both = [recur(self.forwards, x, mask=real), recur(self.backwards, x, mask=real, reverse=True)]
        return self.head(_mean(jnp.concatenate(both, axis=-1), real))


class Transformer(nnx.Module):
    """What encoder and decoder are made of.

    Args:
        embed: from tokens to features.
        blocks: of features to features.
        head: from features to classes, or to tokens.
        length: the most tokens.
        features: width of the embedding.
        rngs: Flax's random streams.
    """

    def __init__(
        self,
        embed: nnx.Module,
        blocks: Sequence[TransformerBlock],
        head: nnx.Module,
        length: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.embed, self.blocks, self.head = embed, nnx.List(blocks), head
        self.positions = nnx.Embed(length, features, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)


class TransformerEncoder(Transformer):
    """`head(norm(mean over tokens of blocks(embedding + positions)))`."""

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch classes"]:
        """Logits; padding is neither looked at nor averaged."""
        real, x = tokens > 0, _placed(self.embed, self.positions, tokens)
        for block in self.blocks:
            x = block(x, real[:, None, None, :])
        return self.head(self.norm(_mean(x, real)))


class TransformerDecoder(Transformer):
    """`head(norm(causal blocks(embedding + positions)))`: scores of the next token at every place."""

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time vocabulary"]:
        """Logits; those at a place see the tokens up to it."""
        x = _placed(self.embed, self.positions, tokens)
        for block in self.blocks:
            x = block(x, is_causal=True)
        return self.head(self.norm(x))


def _placed(embed: nnx.Module, positions: nnx.Embed, tokens: Int[Array, "batch time"]) -> Array:
    """Embeddings of tokens and of their places, added: (batch, time, features)."""
    x = embed(tokens)
    return x + jnp.broadcast_to(positions(jnp.arange(tokens.shape[1])), x.shape)


def _mean(x: Float[Array, "batch time features"], real: Bool[Array, "batch time"]) -> Float[Array, "batch features"]:
    """Mean over the tokens that are no padding."""
    weights = real.astype(x.dtype)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("bt,btf->bf", weights, x)


def bilstm(
    vocabulary: int,
    features: int,
    hidden: int,
    classes: int,
    *,
    format: str = "tt_matrix",
    rank: int = 8,
    rngs: nnx.Rngs,
) -> BiLSTM:
    """A `BiLSTM` with every weight in one format, or all dense with `format="dense"`."""

    def cell() -> nnx.Module:
        if format == "dense":
            return nnx.OptimizedLSTMCell(features, hidden, rngs=rngs)
        into, back = (linear_network(4 * hidden, width, format, rank) for width in (features, hidden))
        return LSTMCell(into, back, rngs=rngs)

    head = _linear(2 * hidden, classes, format, rank, rngs)
    return BiLSTM(_embed(vocabulary, features, format, rank, rngs), cell(), cell(), head)


def transformer_encoder(
    vocabulary: int,
    length: int,
    features: int,
    classes: int,
    *,
    heads: int = 4,
    hidden: int | None = None,
    blocks: int = 2,
    format: str = "tt_matrix",
    rank: int = 8,
    rngs: nnx.Rngs,
) -> TransformerEncoder:
    """A `TransformerEncoder` with all embeddings and projections in one format, or dense with `format="dense"`.

    Args:
        vocabulary, length, features, classes: sizes.
        heads: of each attention.
        hidden: of each feed-forward layer; 4 x features when None.
        blocks: how many.
        format: name of a format, or "dense".
        rank: of every bond.
        rngs: Flax's random streams.
    """
    parts = _parts(vocabulary, features, classes, heads, hidden, blocks, format, rank, rngs)
    return TransformerEncoder(*parts, length, features, rngs=rngs)


def transformer_decoder(
    vocabulary: int,
    length: int,
    features: int,
    *,
    heads: int = 4,
    hidden: int | None = None,
    blocks: int = 2,
    format: str = "tt_matrix",
    rank: int = 8,
    rngs: nnx.Rngs,
) -> TransformerDecoder:
    """A `TransformerDecoder`; arguments as `transformer_encoder`'s. With `Categorical`, y is x one token later."""
    parts = _parts(vocabulary, features, vocabulary, heads, hidden, blocks, format, rank, rngs)
    return TransformerDecoder(*parts, length, features, rngs=rngs)


def _parts(
    vocabulary: int,
    features: int,
    out: int,
    heads: int,
    hidden: int | None,
    blocks: int,
    format: str,
    rank: int,
    rngs: nnx.Rngs,
) -> tuple[nnx.Module, list[TransformerBlock], nnx.Module]:
    """(embedding, blocks, head)."""
    embed, head = _embed(vocabulary, features, format, rank, rngs), _linear(features, out, format, rank, rngs)
    hidden = 4 * features if hidden is None else hidden
    return embed, [_block(features, heads, hidden, format, rank, rngs) for _ in range(blocks)], head


def _block(features: int, heads: int, hidden: int, format: str, rank: int, rngs: nnx.Rngs) -> TransformerBlock:
    layers: list[Network | tuple[int, int]] = [(features, hidden), (hidden, features)]
    if format == "dense":
        attention = nnx.MultiHeadAttention(heads, features, decode=False, keep_rngs=False, rngs=rngs)
    else:
        layers = [linear_network(out, into, format, rank) for into, out in ((features, hidden), (hidden, features))]
        square = linear_network(features, features, format, rank)
        attention = MultiHeadAttention(heads, square, out=square, rngs=rngs)
    return TransformerBlock(attention, MLP(layers, activation="gelu", rngs=rngs), features, rngs=rngs)


def _embed(vocabulary: int, features: int, format: str, rank: int, rngs: nnx.Rngs) -> nnx.Module:
    if format == "dense":
        return nnx.Embed(vocabulary, features, rngs=rngs)
    return Embed(embed_network(vocabulary, features, format, rank), vocabulary, rngs=rngs)


def _linear(into: int, out: int, format: str, rank: int, rngs: nnx.Rngs) -> nnx.Module:
    return (
        nnx.Linear(into, out, rngs=rngs)
        if format == "dense"
        else Linear(linear_network(out, into, format, rank), rngs=rngs)
    )
