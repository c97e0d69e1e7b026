"""A completion by config: a known tensor, which of its entries to hide, and the estimator's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from bayestensor.data.tensors import TENSORS, load_ratings, load_tensor
from bayestensor.errors import ConfigError
from bayestensor.experiment import messages, yaml_io
from bayestensor.experiment.config import _frozen, read_text
from bayestensor.experiment.sections import Count, Section, Share

Mode = Annotated[int, Field(ge=0)]
Sweeps = Count | Literal["auto"]
Modes = tuple[Mode, ...] | Literal["auto"]
RATINGS = "movielens"


class Estimator(Section):
    """Parameters of `TensorCompletion`, its defaults where nothing is said."""

    format: str = "cp"
    max_rank: Count | Literal["auto", "full"] = "auto"
    prior: str | None = None
    smooth: Modes = "auto"
    likelihood: str = "gaussian"
    noise_by: Mode | None = None
    effects: Modes = ()
    conformal: Share = 0.0
    conformal_by: Mode | Literal["random"] = "random"
    inference: str = "gibbs"
    num_draws: Sweeps = "auto"
    burn_in: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    chains: Sweeps = "auto"
    warm_up: Count = 60


class Completion(Section):
    """One completion whose hidden entries are known, so that they can be scored."""

    data: Literal[(RATINGS, *sorted(TENSORS))]  # type: ignore[valid-type]
    every: tuple[Count, ...] = ()  # of each mode every so many-th index
    first: tuple[Count, ...] = ()  # and then of each mode the first so many
    hidden: Share = 0.5  # share of the entries
    along: Mode | None = None  # whole fibres along a mode are hidden; null: entries at random
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1  # of the mask and of the fit
    estimator: Estimator = Estimator()


class Known(NamedTuple):
    """What the fit is given, and what it is not."""

    given: tuple[Any, ...]  # arguments of `TensorCompletion.fit`
    coords: np.ndarray  # of the hidden entries
    truth: np.ndarray


def load(path: Path, seed: int | None = None) -> Completion:
    """Read a config; `seed` takes the place of its own.

    Raises:
        ConfigError: one line that names the key, what was given and what is allowed.
    """
    raw = yaml_io.parse(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping with keys {', '.join(Completion.model_fields)}")
    raw = raw if seed is None else raw | {"seed": seed}
    try:
        return Completion.model_validate(_frozen(raw))
    except ValidationError as error:
        raise ConfigError(messages.explain(error, Completion, raw, str(path))) from None


def hide(task: Completion, data_dir: str | Path | None = None) -> Known:
    """The data with holes: of `numpy.random.default_rng(seed).random(shape)` entries above `hidden` are shown.

    Raises:
        DataError: the file is not there.
        ConfigError: `every`, `first` or `along` do not go with the tensor's modes.
    """
    rng = np.random.default_rng(task.seed)
    if task.data == RATINGS:
        if task.every or task.first or task.along is not None:
            raise ConfigError("every, first and along are for arrays; movielens is a list of ratings")
        coords, stars = load_ratings(data_dir)
        shape = tuple((coords.max(0) + 1).tolist())
        held = rng.random(len(stars)) < task.hidden
        return Known((coords[~held], stars[~held], shape), coords[held], stars[held])
    whole = load_tensor(task.data, data_dir)
    for name, sizes in (("every", task.every), ("first", task.first)):
        if sizes and len(sizes) != whole.ndim:
            raise ConfigError(f"{name} has {len(sizes)} numbers; {task.data} has {whole.ndim} modes")
    whole = whole[tuple(slice(None, None, step) for step in task.every)]
    whole = whole[tuple(slice(size) for size in task.first)]
    if task.along is not None and task.along >= whole.ndim:
        raise ConfigError(f"along is {task.along}; {task.data} has modes 0 to {whole.ndim - 1}")
    shape = tuple(1 if mode == task.along else size for mode, size in enumerate(whole.shape))
    shown = np.broadcast_to(rng.random(shape) > task.hidden, whole.shape)
    coords = np.argwhere(~shown & np.isfinite(whole))
    return Known((np.where(shown, whole, np.nan),), coords, whole[tuple(coords.T)])


def estimator(task: Completion) -> dict[str, Any]:
    """Its parameters, the seed among them."""
    return task.estimator.model_dump() | {"random_state": task.seed, "verbose": True}
