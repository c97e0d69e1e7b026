"""What became of each layer of a model, as a table, and the time it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from bayestensor.metrics.cost import latency


@dataclass(frozen=True)
class Change:
    """One layer.

    Attributes:
        path: of the layer in the model, dotted.
        kind: its type.
        format: of its network, "dense" where it has none.
        before, after: parameters, biases included.
        ranks: bond -> size.
        error: `||W - network|| / ||W||` right after, None where nothing was approximated.
        note: why it is as it is.
    """

    path: str
    kind: str
    format: str
    before: int
    after: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Compression:
    """A smaller model and how it came about; prints as a table.

    Attributes:
        model: the new model; the one that came in is unchanged.
        layers: one entry for every layer that owns parameters.
        milliseconds: of one call on the example, (before, after); None without an example.
    """

    model: nnx.Module
    layers: tuple[Change, ...]
    milliseconds: tuple[float, float] | None = None

    @property
    def before(self) -> int:
        """Parameters of the model that came in."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Parameters of the new model."""
        return sum(layer.after for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "type", "format", "ranks", "before", "after", "smaller", "error", "note")
        rows = [head, *map(_row, self.layers), _row(Change("all", "", "", self.before, self.after))]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        aligned = [str.ljust] * 4 + [str.rjust] * 4 + [str.ljust]
        lines = ["  ".join(a(cell, w) for a, cell, w in zip(aligned, row, widths, strict=True)) for row in rows]
        lines.insert(-1, "")
        lines.append(f"bytes at 4 a parameter: {4 * self.before:,} -> {4 * self.after:,}")
        if self.milliseconds is not None:
            lines.append("milliseconds a call: {:.2f} -> {:.2f}".format(*self.milliseconds))
        return "\n".join(line.rstrip() for line in lines)


def _row(layer: Change) -> tuple[str, ...]:
    ranks = list(layer.ranks.values())
    told = f"{ranks[0]} each" if len(set(ranks)) == 1 < len(ranks) else " ".join(map(str, ranks))
    factor = f"{layer.before / layer.after:.1f}x" if layer.after else ""
    error = "" if layer.error is None else f"{layer.error:.3f}"
    sizes = (f"{layer.before:,}", f"{layer.after:,}", factor)
    return (layer.path, layer.kind, layer.format, told, *sizes, error, layer.note)


def speed(models: Sequence[nnx.Module], example: Any) -> tuple[float, ...] | None:
    """Median milliseconds of a compiled call of each model on the example, here and now; None without one."""
    if example is None:
        return None

    def milliseconds(model: nnx.Module) -> float:
        graphdef, state = nnx.split(model)
        call = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
        return 1e3 * latency(call, state, example)

    return tuple(map(milliseconds, models))


def count(module: nnx.Module) -> int:
    """Numbers in the parameters of a module and all below it."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def substitute(model: nnx.Module, new: Mapping[int, nnx.Module]) -> nnx.Module:
    """The model with each module in its place changed for `new[id(module)]`, wherever it is shared."""
    for _, parent in list(nnx.iter_modules(model)):
        for name, value in list(vars(parent).items()):
            if id(value) in new:
                if isinstance(parent, nnx.List):
                    parent[int(name)] = new[id(value)]
                else:
                    setattr(parent, name, new[id(value)])
    return new.get(id(model), model)
