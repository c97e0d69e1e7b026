"""An embedding table that is a tensor network."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.weight import TensorWeight
from bayestensor.tensor.contract import matvec, rows
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Float, Int


class Embed(nnx.Module):
    """Rows of a table `E` (num_embeddings, features) that is never built; calls like `flax.nnx.Embed`.

    Args:
        network: what E is; its rows multiply to num_embeddings or a little more, its columns to features.
        num_embeddings: rows of E that mean something; all of the network's when None.
        variance: of an entry of E at the start; 1 / features when None.
        rngs: Flax's random streams.

    Raises:
        ValueError: num_embeddings is more than the network's rows.
    """

    def __init__(
        self,
        network: Network,
        num_embeddings: int | None = None,
        *,
        variance: float | None = None,
        rngs: nnx.Rngs,
    ):
        rows, self.features = network.matrix_shape
        self.num_embeddings = rows if num_embeddings is None else num_embeddings
        if not 1 <= self.num_embeddings <= rows:
            raise ValueError(
                f"num_embeddings is {num_embeddings}; it is at least 1 and at most the network's {rows} rows"
            )
        self.embedding = TensorWeight(network, 1 / self.features if variance is None else variance, rngs=rngs)

    def __call__(self, inputs: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """`E[inputs]`.

        Raises:
            ValueError: inputs that are no integers.
        """
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f"inputs are {inputs.dtype}; an embedding is looked up by whole numbers")
        return rows(self.embedding.tensor, inputs)

    def attend(self, query: Float[Array, "*batch features"]) -> Float[Array, "*batch num_embeddings"]:
        """`E query`: scores of every row, for an output layer that shares the table."""
        return matvec(self.embedding.tensor, query)[..., : self.num_embeddings]
