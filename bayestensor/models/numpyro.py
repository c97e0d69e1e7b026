"""To NumPyro and back: a `Posterior` as a NumPyro model, for its inference to run on, and a NumPyro model as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.base import Posterior
from bayestensor.typing import Array, Batch, Position, Scalar

__all__ = ["FromNumPyro", "ToNumPyro", "from_numpyro", "to_numpyro"]


@dataclass(frozen=True)
class ToNumPyro:
    """A NumPyro model, to be called by NumPyro without arguments.

    Attributes:
        posterior: the target.
        data: all of it.
        initial: site -> value, for `numpyro.infer.init_to_value(values=...)`.
        like: a position, for its structure.
    """

    posterior: Posterior
    data: Batch
    initial: dict[str, Array]
    like: Position

    def __call__(self) -> None:
        """One flat site a leaf, and the whole log density as a factor."""
        import numpyro
        from numpyro.distributions import ImproperUniform, constraints

        sites = {
            name: numpyro.sample(name, ImproperUniform(constraints.real, (), event_shape=value.shape))
            for name, value in self.initial.items()
        }
        numpyro.factor("log_density", self.posterior.log_density(self.position(sites), self.data))

    def position(self, sites: Mapping[str, Array]) -> Position:
        """Site -> value as the pytree; leading axes stay ([chain, draw], of `get_samples(group_by_chain=True)`)."""
        return jax.tree.unflatten(jax.tree.structure(self.like), [sites[name] for name in self.initial])


def to_numpyro(posterior: Posterior, position: Position, data: Batch) -> ToNumPyro:
    """A posterior as a NumPyro model: `MCMC(NUTS(to_numpyro(posterior, position, data)), ...)`.

    Args:
        posterior: the target; proper.
        position: any position, for names, shapes and a start.
        data: all the data; there is no subsampling.

    Raises:
        ValueError: an improper prior.
    """
    if not posterior.proper:
        raise ValueError("this prior is improper: NumPyro's samplers would drift for ever. Truncate it, or fit by MAP.")
    leaves = jax.tree_util.tree_leaves_with_path(position)
    initial = {jax.tree_util.keystr(path, simple=True, separator="/") or "value": jnp.asarray(x) for path, x in leaves}
    return ToNumPyro(posterior, data, initial, position)


@dataclass(frozen=True)
class FromNumPyro:
    """What a NumPyro model becomes.

    Attributes:
        posterior: over the unconstrained values of the latent sites, site -> array.
        initial: a position, drawn from the prior.
        constrain: position -> site -> value in the model's own units.
    """

    posterior: Posterior
    initial: dict[str, Array]
    constrain: Callable[[Position], dict[str, Array]]


def from_numpyro(model: Callable[..., Any], *data: Array, seed: int = 0, **kwargs: Any) -> FromNumPyro:
    """A NumPyro model as a `Posterior` for our engines: `model(*batch, **kwargs)` over batches of `data`.

        log_prior      = sum log p(latent sites) + log |d constrained / d unconstrained|
        log_likelihood = sum over the observed sites of log p, one number a datum

    The model has to draw its sizes from its arguments (`plate("data", len(x))`), so that it runs on a batch; what it
    calls a latent must not depend on them. `numpyro.factor` counts as prior unless it has one number a datum.

    Args:
        model: the NumPyro model, called with arrays whose first axis is the data.
        data: all of them; at least one array.
        seed: of the initial position.
        kwargs: handed to every call.

    Raises:
        ValueError: no data, a discrete latent, a plate that subsamples, a latent for each datum, or an observation
            whose log density has no first axis over the data.
    """
    sizes = {np.shape(x)[:1] for x in data}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"arrays with one first axis over the data are needed; their first axes are {sorted(sizes)}")
    (num_data,) = sizes.pop()
    trace = _trace(model, data, kwargs, jax.random.key(seed), {})
    latent = {name: site for name, site in trace.items() if not site["is_observed"]}
    _check(trace, num_data)
    initial = {name: _to(site["fn"]).inv(site["value"]) for name, site in latent.items()}

    def run(position: Position, batch: tuple[Array, ...]) -> tuple[dict[str, Any], Scalar]:
        jacobians: list[Scalar] = []
        sites = _trace(model, batch, kwargs, jax.random.key(0), position, jacobians)
        return sites, sum(jacobians, start=jnp.asarray(0.0))

    def is_datum(name: str, site: dict[str, Any], count: int) -> bool:
        return site["is_observed"] and jnp.shape(_log_prob(site))[:1] == (count,)

    def log_prior(position: Position) -> Scalar:
        sites, jacobian = run(position, data)
        return jacobian + sum(_log_prob(s).sum() for n, s in sites.items() if not is_datum(n, s, num_data))

    def log_likelihood(position: Position, batch: tuple[Array, ...]) -> Array:
        count = len(batch[0])
        terms = [_log_prob(s) for n, s in run(position, batch)[0].items() if is_datum(n, s, count)]
        return sum((term.reshape(count, -1).sum(1) for term in terms), start=jnp.zeros(count))

    def constrain(position: Position) -> dict[str, Array]:
        sites, _ = run(position, data)
        return {name: sites[name]["value"] for name in latent}

    return FromNumPyro(Posterior(log_prior, log_likelihood, num_data), initial, constrain)


def _to(distribution: Any) -> Any:
    """The map from the whole space to a distribution's support."""
    from numpyro.distributions.transforms import biject_to

    return biject_to(distribution.support)


def _trace(model, batch, kwargs, key, position, jacobians=None) -> dict[str, Any]:
    """Name -> sample site of one run, latent sites at the unconstrained `position`, drawn where it has none.

    Supports are read during the run, since one site's value may bound another's. `jacobians` collects log-determinants.
    """
    from numpyro import handlers

    def value_of(site):
        if site["type"] != "sample" or site["name"] not in position:
            return None
        transform, z = _to(site["fn"]), position[site["name"]]
        value = transform(z)
        jacobians.append(transform.log_abs_det_jacobian(z, value).sum())
        return value

    run = handlers.trace(handlers.substitute(handlers.seed(model, key), substitute_fn=value_of))
    return {name: site for name, site in run.get_trace(*batch, **kwargs).items() if site["type"] == "sample"}


def _log_prob(site: dict[str, Any]) -> Array:
    return site["fn"].log_prob(site["value"])


def _check(trace: Mapping[str, Any], num_data: int) -> None:
    if not any(site["is_observed"] for site in trace.values()):
        raise ValueError("the model observes nothing; give sites obs=...")
    for name, site in trace.items():
        if site["scale"] is not None and not np.all(np.asarray(site["scale"]) == 1):
            raise ValueError(f"site {name!r} is scaled; leave subsampling to the engine and take plates without it")
        if not site["is_observed"] and site["fn"].support.is_discrete:
            raise ValueError(f"site {name!r} is discrete; sum it out: the engines move along gradients")
        if not site["is_observed"] and any(frame.size == num_data for frame in site["cond_indep_stack"]):
            raise ValueError(f"site {name!r} has a value for each datum; only latents that all data share can be moved")
        shape, factor = np.shape(_log_prob(site)), type(site["fn"]).__name__ == "Unit"
        if site["is_observed"] and not factor and shape[:1] != (num_data,):
            raise ValueError(
                f"observed site {name!r} has log densities of shape {shape}; the first axis must be the {num_data} data"
            )
