"""The one tensorized parameter that every layer holds."""

from __future__ import annotations

from flax import nnx

from bayestensor.tensor.initialise import core_variance, initialise
from bayestensor.tensor.network import Factored, Network, fitted


class TensorWeight(nnx.Module):
    """A weight kept as the cores of a tensor network.

    Bond sizes are read off the arrays, so that pruning a weight means putting smaller arrays in.

    Args:
        network: the declaration; `network.matrix_shape` is (out, in).
        variance: of an entry of the dense weight at the start. sigma_core^2, the prior variance of a core
            entry at unit scales, follows from it by the initialisation law and stays fixed afterwards.
        rngs: Flax's random streams; `params` is used.
    """

    def __init__(self, network: Network, variance: float, *, rngs: nnx.Rngs):
        self.network = network
        self.core_variance = core_variance(network, variance)
        start = initialise(rngs.params(), network, variance)
        self.cores = nnx.Dict({name: nnx.Param(array) for name, array in start.cores.items()})

    @property
    def tensor(self) -> Factored:
        """The weight as a `Factored`, at its present ranks."""
        return fitted(self.network, {name: core[...] for name, core in self.cores.items()})
