"""A finished run, loaded to predict with: the model file of any engine, and the draws of a sampled one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from bayestensor.errors import RunError
from bayestensor.experiment import model_file
from bayestensor.experiment.folder import RunFolder, open_run
from bayestensor.inference.draws import Draws
from bayestensor.inference.train import in_pieces

if TYPE_CHECKING:
    from bayestensor.models.neural import NeuralModel


@dataclass(frozen=True)
class SavedRun:
    """A finished run.

    Attributes:
        folder: where it lies.
        spec, arrays: its model file; of a sampled run, every array has a member a draw in front.
    """

    folder: RunFolder
    spec: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def members(self) -> int:
        """Draws, particles or ensemble members that predict together; 1 for MAP."""
        return int(self.spec.get("members") or 1)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """Class probabilities (n, classes) of raw inputs (n, ...), those of the mixture where there are members.

        Raises:
            RunError: inputs of another shape, or not finite.
        """
        raw, width = np.asarray(x), math.prod(self.spec["input_shape"])
        if raw.ndim < 1 or math.prod(raw.shape[1:]) != width:
            expected = ", ".join(map(str, self.spec["input_shape"]))
            raise RunError(f"inputs have shape {raw.shape}; {self.folder.path} takes (n, {expected})")
        wrong = int((~np.isfinite(raw)).reshape(len(raw), width).any(1).sum())
        if wrong:
            raise RunError(f"{wrong} of {len(raw)} inputs are not finite; {self.folder.path} takes whole ones only")
        if not len(raw):
            return np.zeros((0, self.spec["classes"]), np.float32)
        return np.asarray(self._compiled(self.arrays, jnp.asarray(raw.reshape(len(raw), width), jnp.float32)))

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(
            lambda arrays, x: jax.nn.softmax(in_pieces(lambda piece: model_file.apply(self.spec, arrays, piece), x))
        )

    @cached_property
    def model(self) -> NeuralModel:
        """The model whose positions the draws are."""
        from bayestensor.experiment.build import neural_model

        return neural_model(self.folder.config())[0]

    def draws(self) -> Draws:
        """The draws of a sampled run, [chain, draw, ...]: cut by posterior mass where slices fell.

        Raises:
            RunError: the run has none: MAP and ensembles keep weights alone, in the model file.
        """
        if not self.folder.draws.is_dir():
            engine = self.folder.config().engine.name
            raise RunError(f"{self.folder.path}: engine {engine} leaves no draws; predict() reads its model file")
        try:
            return Draws.load(self.folder.path, like=self.model.initial_position())
        except (ValueError, FileNotFoundError) as error:
            raise RunError(str(error)) from None


def load_run(run_dir: str | Path) -> SavedRun:
    """A finished run from its folder.

    Raises:
        RunError: no run, or not finished, or a damaged file.
    """
    folder = open_run(run_dir)
    if not folder.summary_file.exists():
        raise RunError(f"{run_dir}: not finished; go on with: bayestensor resume {run_dir}")
    return SavedRun(folder, *model_file.load_model(folder.model_stem))


def read_inputs(path: Path) -> np.ndarray:
    """Numbers from an .npy file.

    Raises:
        RunError: no such file, or not one of numbers.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise RunError(f"{path}: damaged, or no .npy file of numbers") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise RunError(f"{path}: holds no array of real numbers; expected one raw input a row")
    return found
