"""What `check` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bayestensor.experiment.config import Config
from bayestensor.experiment.layers import Layer


def layer_table(config: Config, layers: Sequence[Layer]) -> Table:
    """Shapes, parameters and operations of every layer."""
    batch = config.train.batch_size
    title = f"{config.name}: {config.model.name}, {config.model.format}, {config.data.name}"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1))
    for heading in ("layer", "in -> out", "modes", "ranks"):
        table.add_column(heading, overflow="fold")
    for heading in ("dense", "at start", "ratio", "FLOPs", "of dense"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.caption = f"FLOPs: a forward pass per datum, in batches of {batch}"
    flops = [layer.flops(batch) for layer in layers]
    biased = [layer.in_features * 2.0 + layer.bias for layer in layers]
    dense_flops = [each * layer.out_features * layer.times for each, layer in zip(biased, layers, strict=True)]
    for layer, count, dense_count in zip(layers, flops, dense_flops, strict=True):
        table.add_row(
            layer.name,
            f"{layer.in_features} -> {layer.out_features}",
            _modes(layer),
            _ranks(layer),
            *_figures(layer.dense_parameters, layer.parameters, count, dense_count),
        )
    table.add_section()
    dense = sum(layer.dense_parameters for layer in layers)
    start = sum(layer.parameters for layer in layers)
    table.add_row("all", "", "", "", *_figures(dense, start, sum(flops), sum(dense_flops)))
    return table


def _figures(dense: int, start: int, flops: float, dense_flops: float) -> tuple[str, ...]:
    return f"{dense:,}", f"{start:,}", f"{dense / start:.1f}x", f"{flops:,.0f}", f"{flops / dense_flops:.0%}"


def _modes(layer: Layer) -> str:
    if layer.network is None:
        return ""
    cols, rows = ([layer.network.size[leg] for leg in legs] for legs in (layer.network.cols, layer.network.rows))
    return f"{'x'.join(map(str, cols))} -> {'x'.join(map(str, rows))}"


def _ranks(layer: Layer) -> str:
    """Bond=rank, or the rank alone where all bonds have it."""
    ranks = {} if layer.network is None else layer.network.ranks
    if len(set(ranks.values())) == 1:
        return f"{next(iter(ranks.values()))} each"
    return " ".join(f"{bond}={size}" for bond, size in ranks.items())
