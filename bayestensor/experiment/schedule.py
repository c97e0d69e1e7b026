"""How long a sampler runs, in steps: from the epochs of its section, for as many data as there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bayestensor.experiment.engines import Langevin, Nuts, Sampler

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config


class Schedule(NamedTuple):
    """Attributes:
    batch_size: data a step; None for all.
    burn_in: steps that adapt.
    draws: kept of every chain.
    thin: steps between two of them.
    cycle: steps in a cycle of the step size; None for a constant one.
    """

    batch_size: int | None
    burn_in: int
    draws: int
    thin: int
    cycle: int | None

    @property
    def steps(self) -> int:
        """All of them."""
        return self.burn_in + self.draws * self.thin


def schedule(config: Config, num_data: int) -> Schedule:
    """The schedule of a config whose engine is a `Sampler`; `thin` is 0 where it asks for more draws than steps."""
    engine = config.engine
    assert isinstance(engine, Sampler)
    size = None if isinstance(engine, Nuts) else engine.batch_size or config.train.batch_size
    per_epoch = 1 if size is None else max(num_data // size, 1)
    thin = 1 if engine.epochs is None else round(engine.epochs * per_epoch) // engine.draws
    cycle = engine.cycle if isinstance(engine, Langevin) else None
    return Schedule(
        batch_size=None if size == num_data else size,
        burn_in=round(engine.burn_in * per_epoch),
        draws=engine.draws,
        thin=thin,
        cycle=None if cycle is None else max(round(cycle * per_epoch), 1),
    )
