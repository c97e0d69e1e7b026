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
        network: what E is; its rows multiply to num_embeddings, its columns to features.
        variance: of an entry of E at the start; 1 / features when None.
        rngs: Flax's random streams.
    """

    def __init__(self, network: Network, *, variance: float | None = None, rngs: nnx.Rngs):
        self.num_embeddings, self.features = network.matrix_shape
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
        return matvec(self.embedding.tensor, query)
