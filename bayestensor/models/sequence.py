"""Sequences of tokens: a bidirectional LSTM and a Transformer encoder that classify them (token 0 being padding), and
a Transformer decoder that tells the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.attention import MultiHeadAttention, TransformerBlock
from bayestensor.nn.embedding import Embed
from bayestensor.nn.linear import MLP, Linear
from bayestensor.nn.recurrent import LSTMCell, recur
from bayestensor.nn.remat import called
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
        positions: from places to features, one row a place.
        blocks: of features to features.
        head: from features to classes, or to tokens.
        features: width of the embedding.
        rngs: Flax's random streams.
    """

    def __init__(
        self,
        embed: nnx.Module,
        positions: nnx.Module,
        blocks: Sequence[TransformerBlock],
        head: nnx.Module,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.embed, self.positions, self.blocks, self.head = embed, positions, nnx.List(blocks), head
        self.norm, self.rematerialise = nnx.LayerNorm(features, rngs=rngs), False


class TransformerEncoder(Transformer):
    """`head(norm(mean over tokens of blocks(embedding + positions)))`."""

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch classes"]:
        """Logits; padding is neither looked at nor averaged."""
        real, x = tokens > 0, _placed(self.embed, self.positions, tokens)
        for block in self.blocks:
            x = called(lambda block, x, mask: block(x, mask), self.rematerialise, block, x, real[:, None, None, :])
        return self.head(self.norm(_mean(x, real)))


class TransformerDecoder(Transformer):
    """`head(norm(causal blocks(embedding + positions)))`: scores of the next token at every place."""

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time vocabulary"]:
        """Logits; those at a place see the tokens up to it."""
        x = _placed(self.embed, self.positions, tokens)
        for block in self.blocks:
            x = called(lambda block, x: block(x, is_causal=True), self.rematerialise, block, x)
        return self.head(self.norm(x))


def _placed(embed: nnx.Module, positions: nnx.Module, tokens: Int[Array, "batch time"]) -> Array:
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
    table_rank: int | None = None,
    order: int | None = None,
    rngs: nnx.Rngs,
) -> BiLSTM:
    """A `BiLSTM` with every weight in one format, dense with `format="dense"`; options as `transformer_encoder`'s."""
    weights = Weights(format, rank, order, rngs, table_rank)

    def cell() -> nnx.Module:
        if format == "dense":
            return nnx.OptimizedLSTMCell(features, hidden, rngs=rngs)
        into, back = (weights.network(4 * hidden, width) for width in (features, hidden))
        return LSTMCell(into, back, rngs=rngs)

    head = weights.linear(2 * hidden, classes)
    return BiLSTM(weights.embed(vocabulary, features, table_rank), cell(), cell(), head)


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
    table_rank: int | None = None,
    order: int | None = None,
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
        table_rank: of the bonds of the tokens' embedding; `rank` when None.
        order: modes a side of every weight; chosen by the widths when None.
        rngs: Flax's random streams.
    """
    weights = Weights(format, rank, order, rngs, table_rank)
    parts = weights.transformer((vocabulary, length), features, classes, heads, hidden or 4 * features, blocks)
    return TransformerEncoder(*parts, features, rngs=rngs)


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
    table_rank: int | None = None,
    order: int | None = None,
    rngs: nnx.Rngs,
) -> TransformerDecoder:
    """A `TransformerDecoder`; arguments as `transformer_encoder`'s. With `Categorical`, y is x one token later."""
    weights = Weights(format, rank, order, rngs, table_rank)
    parts = weights.transformer((vocabulary, length), features, vocabulary, heads, hidden or 4 * features, blocks)
    return TransformerDecoder(*parts, features, rngs=rngs)


@dataclass(frozen=True)
class Weights:
    """Layers in one format, or dense ones: what the models here are made of, and others may be.

    Attributes:
        format: name of a format, or "dense".
        rank: of every bond.
        order: modes a side of every weight; chosen by the widths when None.
        rngs: Flax's random streams.
        table_rank: of every bond of the tokens' embedding; `rank` when None.
    """

    format: str
    rank: int
    order: int | None
    rngs: nnx.Rngs
    table_rank: int | None = None

    def transformer(
        self, tables: tuple[int, int], features: int, out: int, heads: int, hidden: int, blocks: int
    ) -> tuple[nnx.Module, nnx.Module, list[TransformerBlock], nnx.Module]:
        """(embedding, positions, blocks, head)."""
        embed, positions = self.embed(tables[0], features, self.table_rank), self.embed(tables[1], features)
        made = [self.block(features, heads, hidden) for _ in range(blocks)]
        return embed, positions, made, self.linear(features, out)

    def embed(self, rows: int, features: int, rank: int | None = None) -> nnx.Module:
        """A table, with bonds of another rank where one is given."""
        if self.format == "dense":
            return nnx.Embed(rows, features, rngs=self.rngs)
        return Embed(embed_network(rows, features, self.format, rank or self.rank, self.order), rows, rngs=self.rngs)

    def linear(self, into: int, out: int) -> nnx.Module:
        """A linear layer."""
        if self.format == "dense":
            return nnx.Linear(into, out, rngs=self.rngs)
        return Linear(self.network(out, into), rngs=self.rngs)

    def network(self, out: int, into: int) -> Network:
        """The network of a weight (out, into)."""
        return linear_network(out, into, self.format, self.rank, self.order)

    def block(self, features: int, heads: int, hidden: int) -> TransformerBlock:
        """Attention and feed-forward layers."""
        layers: list[Network | tuple[int, int]] = [(features, hidden), (hidden, features)]
        if self.format == "dense":
            attention = nnx.MultiHeadAttention(heads, features, decode=False, keep_rngs=False, rngs=self.rngs)
        else:
            layers = [self.network(hidden, features), self.network(features, hidden)]
            square = self.network(features, features)
            attention = MultiHeadAttention(heads, square, out=square, rngs=self.rngs)
        return TransformerBlock(attention, MLP(layers, activation="gelu", rngs=self.rngs), features, rngs=self.rngs)
