"""The sections of a config: one small model for everything that `registry` knows by name (engines: `engines`).

Strict: no unknown key, no guessed type (a whole number may stand for a float), no NaN or infinity. Frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def one_of(table: Mapping[str, type[Section]]) -> Any:
    """The type of a section that is any of a table's, told apart by its `name`."""
    if len(table) == 1:
        return next(iter(table.values()))
    return Annotated[Union[tuple(table.values())], Field(discriminator="name")]  # noqa: UP007


# --- data ---------------------------------------------------------------------------------------------------


class _Images(Section):
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of the training data held out
    limit: Count | None = None  # only so many training data, and at most as many test data: the first ones
    scaling: Literal["unit", "signed", "standard"] = "unit"
    ood: Literal["digits", "mnist", "fashion_mnist"] | None = None  # strangers: are predictions on them less certain?


class Digits(_Images):
    """scikit-learn's 8x8 digits."""

    name: Literal["digits"]


class Mnist(_Images):
    """MNIST from idx files."""

    name: Literal["mnist"]


class FashionMnist(_Images):
    """Fashion-MNIST from idx files."""

    name: Literal["fashion_mnist"]


class Cifar10(_Images):
    """CIFAR-10 from its binary files."""

    name: Literal["cifar10"]


# --- model --------------------------------------------------------------------------------------------------


def _rank(value: Any) -> Any:
    """An int, 'full', or bond -> int; judged here so that the message names all three."""
    expected = "expected a whole number of at least 1, 'full', or a mapping bond -> whole number"
    if isinstance(value, Mapping):
        if not value:
            raise ValueError(f"{expected}, not an empty mapping")
        for bond, size in value.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"bond {bond!r} has rank {size!r}; expected a whole number of at least 1")
    elif value != "full" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(expected)
    return value


Rank: TypeAlias = Annotated[int | Literal["full"] | dict[str, int], BeforeValidator(_rank)]
Modes: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1)]
FORMAT_NAMES = (
    "dense",
    "cp",
    "tucker",
    "tensor_train",
    "tt_matrix",
    "tensor_ring",
    "block_term",
    "hierarchical_tucker",
    "svd",
)
KERNEL_FORMATS = (*FORMAT_NAMES, "svd_spatial")


class _Network(Section):
    """What every network has: linear layers with one activation between them, in a format."""

    activation: Literal["relu", "gelu", "tanh", "silu"] = "relu"
    hidden_bias: bool = True
    output_bias: bool = True
    format: Literal[FORMAT_NAMES] = "tt_matrix"  # type: ignore[valid-type]
    rank: Rank = 20
    shapes: tuple[tuple[Modes, Modes], ...] | None = None  # (input modes, output modes) a linear layer; null: chosen


class Mlp(_Network):
    """Linear layers alone."""

    name: Literal["mlp"]
    hidden: tuple[Count, ...] = (625,)


class Lenet5(_Network):
    """Convolutions, each with its pooling, then linear layers: by default Caffe's LeNet-5, 20-50-500."""

    name: Literal["lenet5"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (20, 50)
    kernel_size: Count = 5
    padding: Literal["VALID", "SAME"] = "VALID"
    pool: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = 2  # sides of the squares whose largest stays
    norm: bool = False  # batch normalisation after every convolution
    average: Count = 1  # side of the squares whose mean the linear layers see
    hidden: tuple[Count, ...] = (500,)
    conv_format: Literal[KERNEL_FORMATS] = "tensor_train"  # type: ignore[valid-type]  # (out, window, in): Tucker-2
    conv_rank: Rank = 20
    least_channels: Count = 1  # kernels of fewer inputs stay dense
    dense_head: bool = False  # whether the last layer stays dense


class Cnn(Lenet5):
    """The CIFAR network of Hawkins & Zhang 2019: 128-256-256-256, normalised, then 1024-512-10."""

    name: Literal["cnn"]  # type: ignore[assignment]
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (128, 256, 256, 256)
    kernel_size: Count = 3
    padding: Literal["VALID", "SAME"] = "SAME"
    pool: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 1, 1)
    norm: bool = True
    average: Count = 8
    hidden: tuple[Count, ...] = (512,)
    format: Literal[FORMAT_NAMES] = "tensor_train"  # type: ignore[valid-type]
    rank: Rank = 30
    conv_rank: Rank = 30
    least_channels: Count = 16
    dense_head: bool = True


class Resnet(Section):
    """A residual network of 6 n + 2 layers (He et al. 2016, section 4.2); first convolution and head are dense."""

    name: Literal["resnet"]
    depth: Annotated[int, Field(ge=8)] = 20
    format: Literal[KERNEL_FORMATS] = "tensor_train"  # type: ignore[valid-type]
    rank: Rank = 16
    least_channels: Count = 16  # kernels of fewer inputs stay dense


# --- prior --------------------------------------------------------------------------------------------------


class _Prior(Section):
    bias_sd: Positive = 100.0  # biases ~ N(0, bias_sd^2)

    def hyperparameters(self) -> dict[str, float]:
        """What the prior over the scales takes."""
        return self.model_dump(exclude={"name", "bias_sd"})


class LogUniform(_Prior):
    """`p(s) ~ 1/s` on [s_min, s_max]."""

    name: Literal["log_uniform"]
    s_min: Positive = 1e-4
    s_max: Positive = 1e2


class HalfCauchy(_Prior):
    """`s ~ half-Cauchy(eta)`."""

    name: Literal["half_cauchy"]
    eta: Positive = 1.0


class InverseGamma(_Prior):
    """`v ~ inverse-gamma(shape, scale)`."""

    name: Literal["inverse_gamma"]
    shape: Positive = 0.5
    scale: Positive = 0.01


class Gamma(_Prior):
    """`s ~ gamma(shape, rate)`."""

    name: Literal["gamma"]
    shape: Positive = 1.0
    rate: Positive = 5.0


class GeneralisedHyperbolic(_Prior):
    """`p(v) ~ v^(-shape - 1) exp(-scale / v - rate v)`."""

    name: Literal["generalised_hyperbolic"]
    shape: Positive = 0.5
    scale: Positive = 0.01
    rate: Positive = 0.1


class SvdPenalty(_Prior):
    """`exp(-N (orthogonality (||u'u - I||^2 + ||v'v - I||^2) / rank^2 + sparsity measure(s)))`, N data; MAP alone."""

    name: Literal["svd_penalty"]
    orthogonality: NonNegative = 1.0
    sparsity: NonNegative = 0.1
    measure: Literal["hoyer", "squared_hoyer", "l1"] = "hoyer"


class CumulativeShrinkage(_Prior):
    """`v ~ inverse-gamma(shape, scale)`, or `spike` times that: the later an index, the likelier."""

    name: Literal["cumulative_shrinkage"]
    alpha: Positive = 5.0
    shape: Positive = 2.0
    scale: Positive = 2.0
    spike: Annotated[float, Field(gt=0, lt=1)] = 0.05
