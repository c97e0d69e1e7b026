"""Click-through rates from counts and categories: DLRM (Naumov et al. 2019, arXiv 1906.00091)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bayestensor.nn.embedding import Embed
from bayestensor.nn.linear import MLP
from bayestensor.tensor.sized import embed_network
from bayestensor.typing import Array, Float, Int


class DLRM(nnx.Module):
    """`top([z_0, <z_i, z_j> for i > j])`, `z_0 = bottom(log(1 + max(counts, 0)))`, `z_k` row c_k of table k.

    Inputs are whole numbers (batch, counts + categories), as a line of Criteo's click logs has them.

    Args:
        bottom: from counts to features.
        tables: from a category to features: `Embed` or `nnx.Embed`, one a category.
        top: from features + pairs to 1.

    Raises:
        ValueError: parts whose widths do not fit.
    """

    def __init__(self, bottom: MLP, tables: Sequence[nnx.Module], top: MLP):
        features = bottom.layers[-1].out_features
        width = features + len(tables) * (len(tables) + 1) // 2
        for k, table in enumerate(tables):
            if table.features != features:  # type: ignore[attr-defined]
                raise ValueError(f"table {k} has {table.features} features and the bottom gives {features}")  # type: ignore[attr-defined]
        if (top.layers[0].in_features, top.layers[-1].out_features) != (width, 1):
            raise ValueError(
                f"the top takes {top.layers[0].in_features} and gives {top.layers[-1].out_features}; {features} "
                f"features and the pairs of {len(tables)} tables ask for {width} and 1"
            )
        self.counts = bottom.layers[0].in_features
        self.bottom, self.tables, self.top = bottom, nnx.List(tables), top

    def __call__(self, x: Int[Array, "batch counts_categories"]) -> Float[Array, "batch"]:
        """Log odds of a click."""
        if x.ndim != 2 or x.shape[1] != self.counts + len(self.tables):
            raise ValueError(f"x has shape {x.shape}; {self.counts} counts and {len(self.tables)} categories a row")
        counts, categories = x[:, : self.counts], x[:, self.counts :]
        z = self.bottom(jnp.log1p(jnp.maximum(counts, 0).astype(jnp.float32)))
        stack = jnp.stack([z, *(table(categories[:, k]) for k, table in enumerate(self.tables))], axis=1)
        later, earlier = np.tril_indices(stack.shape[1], -1)
        pairs = jnp.matmul(stack, stack.mT)[:, later, earlier]  # (batch, tables (tables + 1) / 2)
        return self.top(jnp.concatenate([z, pairs], axis=1))[:, 0]


def dlrm(
    counts: int,
    sizes: Sequence[int],
    features: int = 16,
    *,
    bottom: Sequence[int] = (64,),
    top: Sequence[int] = (64,),
    format: str = "tt_matrix",
    rank: int = 8,
    order: int | None = None,
    least: int = 1000,
    rngs: nnx.Rngs,
) -> DLRM:
    """A `DLRM` whose large tables are networks.

    Args:
        counts: whole-number features.
        sizes: rows of each table.
        features: width of the tables, and what the bottom gives.
        bottom, top: hidden widths.
        format: of the tables, or "dense".
        rank: of every bond.
        order: modes a side, as `embed_network` takes it.
        least: a table of fewer rows, or one that the network would not make smaller, stays dense.
        rngs: Flax's random streams.
    """

    def mlp(widths: Sequence[int]) -> MLP:
        return MLP(list(itertools.pairwise(widths)), rngs=rngs)

    def table(rows: int) -> nnx.Module:
        if format != "dense" and rows >= least:
            network = embed_network(rows, features, format, rank, order)
            if network.num_parameters < rows * features:
                return Embed(network, rows, rngs=rngs)
        return nnx.Embed(rows, features, embedding_init=nnx.initializers.normal(math.sqrt(1 / features)), rngs=rngs)

    width = features + len(sizes) * (len(sizes) + 1) // 2
    tables = [table(rows) for rows in sizes]
    return DLRM(mlp((counts, *bottom, features)), tables, mlp((width, *top, 1)))
