"""Train and shrink a Flax model in one call: the library's front door to MAP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bayestensor.inference.base import map_positions, not_finite_arrays
from bayestensor.inference.map import map_estimate, shrinkage_schedule
from bayestensor.inference.train import Prepare, Trainer, in_pieces
from bayestensor.models.convnet import Reference, calibrated, uncalibrated
from bayestensor.models.likelihoods import Categorical, Likelihood
from bayestensor.models.neural import NeuralModel
from bayestensor.priors import LogUniform
from bayestensor.priors.base import ScalePrior
from bayestensor.ranks.budget import within_budget
from bayestensor.ranks.select import Rule, norm_lost, select
from bayestensor.typing import Array, Position


@dataclass(frozen=True)
class Fit:
    """A trained model: where its posterior has a mode, and what that mode is good for.

    Attributes:
        model: the model without arrays.
        position: weights, log scales and the likelihood's parameters.
        history: per epoch: epoch, loss, nll, num_parameters.
        reference: training inputs that statistics of batch normalisation are computed from; None without.
    """

    model: NeuralModel
    position: Position
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    reference: Reference | None = field(default=None, repr=False)

    @property
    def ranks(self) -> dict[str, dict[str, int]]:
        """Layer -> bond -> present size."""
        return {name: tensor.network.ranks for name, tensor in self.model.tensors(self.position).items()}

    @property
    def num_parameters(self) -> int:
        """Weights and biases; scales are only needed in training."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.position["weights"]))

    @property
    def module(self) -> nnx.Module:
        """The Flax model with these weights, to call or to save."""
        module = self.model.module(self.position)
        return module if self.reference is None else calibrated(module, *self.reference)

    def predict(self, x: Array) -> Array:
        """The model's outputs (logits, means) for inputs (n, features)."""
        graphdef, state = nnx.split(self.module)
        return jax.jit(lambda state, x: in_pieces(nnx.merge(graphdef, state), x))(state, jnp.asarray(x))

    def prune(self, rule: Rule | None = None) -> Fit:
        """The model without the slices that a rule drops (default: `norm_lost(1e-2)`), physically smaller."""
        return replace(self, position=_cut(self.model, self.position, self.position, rule or norm_lost(1e-2)))


def fit_map(
    model: nnx.Module,
    x: Any,
    y: Any,
    *,
    prior: ScalePrior | None = None,
    likelihood: Likelihood | None = None,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    temperature: float = 1.0,
    warmup_epochs: float = 0.0,
    ramp_epochs: float = 5.0,
    prune_epochs: Sequence[int] = (),
    rule: Rule | None = None,
    max_params: int | None = None,
    scale_floor: float = 1e-8,
    seed: int = 0,
    prepare: Prepare | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
) -> Fit:
    """Fit weights and scales of a model together, `loss = mean negative log likelihood - (temperature / N) log prior`.

    Args:
        model: an nnx model with `bayestensor.nn` layers.
        x: inputs (n, ...).
        y: targets (n,) of class labels, or what the likelihood takes.
        prior: of the squared scales; truncated log-uniform when None.
        likelihood: categorical when None.
        optimizer: any Optax transformation; Adam at 5e-3, falling by a cosine, when None.
        epochs, batch_size: how long, in which portions.
        temperature: weight of the prior; 1 is the posterior.
        warmup_epochs, ramp_epochs: no shrinkage, then from none to full.
        prune_epochs: after which epochs slices are cut by `rule` (default `norm_lost(1e-2)`).
        max_params: most parameters after the last cut, weights outside the networks included; slices of least norm go.
        scale_floor: smallest v.
        seed: of the order of the data.
        prepare: (key, inputs of a batch) -> what the model sees of them in this step: augmentation, words dropped.
        callback: told of each epoch.

    Raises:
        ValueError: x and y of different lengths, a batch larger than the data, a cut beyond the last epoch.
        FloatingPointError: a step that is not finite.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}; they need one target a row")
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size is {batch_size}; it is at least 1 and at most the {len(x)} rows of x")
    if max_params is not None and not prune_epochs:
        raise ValueError(f"max_params is {max_params} without prune_epochs; the budget is met at the last of those")
    if epochs < 1 or any(not 1 <= epoch <= epochs for epoch in prune_epochs):
        raise ValueError(f"epochs is {epochs} and prune_epochs {tuple(prune_epochs)}; cuts fall in epochs 1 to epochs")
    model = uncalibrated(model)
    neural = NeuralModel(model, prior or LogUniform(), likelihood or Categorical())
    steps = len(x) // batch_size
    posterior = neural.posterior(len(x))
    engine = map_estimate(
        posterior,
        optimizer or optax.adam(optax.cosine_decay_schedule(5e-3, epochs * steps)),
        temperature=shrinkage_schedule(temperature, steps, warmup_epochs, ramp_epochs),
        after_step=lambda position: neural.clip_scales(position, scale_floor),
    )
    trainer = Trainer(engine, x, y, batch_size, prepare or (lambda key, raw: raw), jax.random.key(seed))
    carry, history = trainer.start(lambda _: neural.started(neural.initial_position()), jax.random.key(seed)), []
    for epoch in range(epochs):
        carry = trainer.advance(carry, epoch, 0, steps)
        if (failed := int(carry.state.failed_at)) >= 0:
            names = trainer.not_finite(carry.state, posterior, *divmod(failed, steps))
            raise FloatingPointError(f"step {failed} is not finite in {names}; lower the learning rate")
        if names := not_finite_arrays(carry.state):  # an update may overflow, which only the step after it would tell
            raise FloatingPointError(f"after epoch {epoch + 1} {names} are not finite; lower the learning rate")
        if epoch + 1 in prune_epochs:
            most = max_params if epoch + 1 == max(prune_epochs) else None
            state = _cut(neural, carry.state, carry.state.position, rule or norm_lost(1e-2), most)
            carry = carry._replace(state=state)
        position = carry.state.position
        means = jax.tree.map(lambda total: float(total) / steps, carry.totals)._asdict()
        history.append({"epoch": epoch + 1, **means, "num_parameters": Fit(neural, position).num_parameters})
        if callback:
            callback(history[-1])
        carry = trainer.new_epoch(carry.state)
    return Fit(neural, carry.state.position, history, Reference.of(model, x, batch_size))


def _cut(model: NeuralModel, state: Any, position: Position, rule: Rule, max_params: int | None = None) -> Any:
    """The state without the slices that the rule drops at the position, within a budget where there is one."""
    scales = {name: {b: np.exp(v) for b, v in bonds.items()} for name, bonds in position["log_scales"].items()}
    tensors = model.tensors(position)
    chosen = select(tensors, rule, scales=scales)
    if max_params is not None:
        chosen = within_budget(tensors, model.num_free(position), max_params=max_params, keep=chosen.keep)
    return map_positions(state, position, model.cuts(position, chosen.keep))
