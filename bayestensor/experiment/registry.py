"""Everything a config may name: one closed table a kind. Nothing else is ever looked up or imported by name.

To add a data set, model, prior or engine: write its section, and add one row here.
"""

from __future__ import annotations

from dataclasses import dataclass

from bayestensor.experiment import engines, sections
from bayestensor.experiment.sections import Section


@dataclass(frozen=True)
class DatasetFacts:
    """What must be known of a data set before it is read.

    Attributes:
        input_shape: of one datum.
        classes: number of labels.
        num_train: data in the training set, held-out ones included.
    """

    input_shape: tuple[int, ...]
    classes: int
    num_train: int


DATASETS: dict[str, type[Section]] = {
    "digits": sections.Digits,
    "mnist": sections.Mnist,
    "fashion_mnist": sections.FashionMnist,
    "cifar10": sections.Cifar10,
}
DATASET_FACTS = {
    "digits": DatasetFacts((8, 8), 10, 1437),
    "mnist": DatasetFacts((28, 28), 10, 60_000),
    "fashion_mnist": DatasetFacts((28, 28), 10, 60_000),
    "cifar10": DatasetFacts((32, 32, 3), 10, 50_000),
}
MODELS: dict[str, type[Section]] = {
    "mlp": sections.Mlp,
    "lenet5": sections.Lenet5,
    "cnn": sections.Cnn,
    "resnet": sections.Resnet,
}
PRIORS: dict[str, type[Section]] = {
    "log_uniform": sections.LogUniform,
    "half_cauchy": sections.HalfCauchy,
    "inverse_gamma": sections.InverseGamma,
    "gamma": sections.Gamma,
    "generalised_hyperbolic": sections.GeneralisedHyperbolic,
    "cumulative_shrinkage": sections.CumulativeShrinkage,
    "svd_penalty": sections.SvdPenalty,
}
ENGINES = engines.ENGINES
OPTIMIZERS = engines.OPTIMIZERS
