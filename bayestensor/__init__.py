"""bayestensor: Bayesian rank-adaptive tensor networks in JAX.

Models whose weights are tensor networks, trained so that they learn their own ranks. Names below are loaded on first
use, which keeps the command line quick to start.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "tensor.network": ("Core", "Factored", "Network", "factored"),
    "tensor.formats": (
        "FORMATS",
        "block_term",
        "cp",
        "hierarchical_tucker",
        "matrix_shapes",
        "svd",
        "tensor_ring",
        "tensor_train",
        "tt_matrix",
        "tucker",
    ),
    "tensor.contract": ("dense", "entries", "matrix", "matvec", "norm", "rows", "slice_norms"),
    "tensor.decompose": ("decompose",),
    "tensor.initialise": ("initialise",),
    "tensor.sized": ("conv_network", "embed_network", "linear_network"),
    "tensor.surgery": ("keep", "pad"),
    "priors": (
        "PRIORS",
        "CumulativeShrinkage",
        "Gamma",
        "GeneralisedHyperbolic",
        "HalfCauchy",
        "InverseGamma",
        "LogUniform",
        "SvdPenalty",
    ),
    "nn.attention": ("MultiHeadAttention", "TransformerBlock"),
    "nn.conv": ("Conv",),
    "nn.embedding": ("Embed",),
    "nn.linear": ("MLP", "Linear"),
    "nn.recurrent": ("GRUCell", "LSTMCell", "recur"),
    "models.convnet": ("ConvNet",),
    "models.likelihoods": ("Bernoulli", "Categorical", "Gaussian"),
    "models.neural": ("NeuralModel",),
    "models.stage": ("Stage",),
    "inference.base": ("Engine", "Posterior"),
    "inference.draws": ("Draws",),
    "inference.map": ("map_estimate",),
    "ranks.explore": ("as_draws", "rank_posterior", "unstack"),
    "ranks.mass": ("prune_draws", "select_by_mass"),
    "ranks.select": ("energy_share", "norm_lost", "rank_of", "raw_scale"),
    "compression.compress": ("compress",),
    "compression.tensorize": ("tensorize",),
    "compression.weights": ("load_weights",),
    "fit": ("Fit", "fit_map"),
    "experiment.saved": ("load_run",),
    "estimators": ("TensorClassifier", "TensorCompletion", "TensorRegressor"),
    "data": ("load_dataset",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'bayestensor' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bayestensor.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
