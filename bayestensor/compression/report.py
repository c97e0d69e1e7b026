"""What became of each layer of a model, as a table, and the time it takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from flax import nnx

from bayestensor.compression.flops import layer_flops
from bayestensor.metrics.cost import latency

TURNS = 20  # calls that a latency is the median of


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
        flops: additions and multiplications of its products in one call on the example, (before, after); None without
            an example, or where the layer makes none.
    """

    path: str
    kind: str
    format: str
    before: int
    after: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None
    note: str = ""
    flops: tuple[int, int] | None = None


@dataclass(frozen=True)
class Compression:
    """A smaller model and how it came about; prints as a table.

    Attributes:
        model: the new model; the one that came in is unchanged.
        layers: one entry for every layer that owns parameters.
        milliseconds: of one call on the example, (before, after); None without an example.
        flops: of all products of that call, also those between layers.
        note: what there is to say on the whole.
    """

    model: nnx.Module
    layers: tuple[Change, ...]
    milliseconds: tuple[float, float] | None = None
    flops: tuple[int, int] | None = None
    note: str = ""

    @property
    def before(self) -> int:
        """Parameters of the model that came in."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Parameters of the new model."""
        return sum(layer.after for layer in self.layers)

    def __str__(self) -> str:
        head = (
            "layer",
            "type",
            "format",
            "ranks",
            "before",
            "after",
            "smaller",
            "FLOPs before",
            "after",
            "error",
            "note",
        )
        every = Change("all", "", "", self.before, self.after, flops=self.flops)
        rows = [head, *map(_row, self.layers), _row(every)]
        aligned: list[Callable] = [str.ljust] * 4 + [str.rjust] * 6 + [str.ljust]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        shown = [k for k in range(len(head)) if any(row[k] for row in rows[1:])]
        lines = ["  ".join(aligned[k](row[k], widths[k]) for k in shown).rstrip() for row in rows]
        lines.insert(-1, "")
        lines.append(f"bytes at 4 a parameter: {4 * self.before:,} -> {4 * self.after:,}")
        if self.milliseconds is not None:
            lines.append("milliseconds a call: {:.2f} -> {:.2f}".format(*self.milliseconds))
        return "\n".join([*lines, *filter(None, [self.note])])


def _row(layer: Change) -> tuple[str, ...]:
    ranks = list(layer.ranks.values())
    told = f"{ranks[0]} each" if len(set(ranks)) == 1 < len(ranks) else " ".join(map(str, ranks))
    factor = f"{layer.before / layer.after:.1f}x" if layer.after else ""
    error = "" if layer.error is None else f"{layer.error:.3f}"
    flops = ("", "") if layer.flops is None else (f"{layer.flops[0]:,}", f"{layer.flops[1]:,}")
    sizes = (f"{layer.before:,}", f"{layer.after:,}", factor)
    return (layer.path, layer.kind, layer.format, told, *sizes, *flops, error, layer.note)


def compression(
    before: nnx.Module, after: nnx.Module, layers: Sequence[Change], example: Any, note: str = ""
) -> Compression:
    """The report, with what a call on the example counts and takes before and after; without those if it is None."""
    if example is None:
        return Compression(after, tuple(layers), note=note)
    counts = [layer_flops(model, example) for model in (before, after)]

    def both(path: str) -> tuple[int, int] | None:
        """Of the layer, with modules inside it that have no row of their own."""
        inside = [name for name in {**counts[0], **counts[1]} if f"{name}.".startswith(f"{path}.")]
        own = [name for name in inside if name == path or name not in rows]
        made = [sum(one[name] for name in own) for one in counts]
        return (made[0], made[1]) if any(made) else None

    rows = {layer.path for layer in layers}
    counted = tuple(replace(layer, flops=both(layer.path)) for layer in layers)
    old, new = _speed((before, after), example)
    return Compression(after, counted, (old, new), (counts[0].total(), counts[1].total()), note)


def _speed(models: Sequence[nnx.Module], example: Any) -> list[float]:
    """Median milliseconds of a compiled call of each model on the example, here and now, the models taking turns."""

    def compiled(model: nnx.Module) -> Callable[[], Any]:
        graphdef, state = nnx.split(model)
        call = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, example).compile()
        return lambda: call(state, example)

    calls = [compiled(model) for model in models]
    times = [[latency(call, repeats=1, warmup=int(turn == 0)) for call in calls] for turn in range(TURNS)]
    return [1e3 * statistics.median(each) for each in zip(*times, strict=True)]


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
