"""Every figure draws on the axes it is given, says what it shows, and leaves matplotlib as it was."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from bayestensor import plots
from bayestensor.ranks.explore import BondRanks, RankPosterior

RNG = np.random.default_rng(0)


def bond(size, mean):
    alive = RNG.poisson(mean, (4, 50, 1)).clip(1, size)
    norms = 10 ** (-0.2 * np.arange(size)) * np.exp(0.1 * RNG.normal(size=(4, 50, size)))
    norms = np.where(np.arange(size) < alive, norms, 1e-6 * norms)
    return BondRanks(-np.sort(-norms, axis=-1) / 3)


A, B = bond(8, 4), bond(5, 2)
MAP = BondRanks(A.norms[:1, :1])
JOINT = RankPosterior({"a": {"x": A, "y": B}}).joint(("a", "x"), ("a", "y"))
DIES = BondRanks(np.zeros((2, 5, 3)))

# name -> (draw on axes, x label, y label)
FIGURES = {
    "bars": (lambda ax: plots.rank_posterior_bars(ax, {"MAP": MAP, "SGHMC": A}), "rank", "posterior probability"),
    "bars, nothing alive": (lambda ax: plots.rank_posterior_bars(ax, {"b": DIES}), "rank", "posterior probability"),
    "alive": (lambda ax: plots.slices_alive(ax, {"x": A, "y": B}), "slice, largest first", "P(alive)"),
    "ridges": (lambda ax: plots.slice_norm_ridgelines(ax, A), "slice norm / ||X|| (log scale)", "slice, largest first"),
    "ridges of one draw": (
        lambda ax: plots.slice_norm_ridgelines(ax, MAP),
        "slice norm / ||X|| (log scale)",
        "slice, largest first",
    ),
    "ridges, nothing alive": (
        lambda ax: plots.slice_norm_ridgelines(ax, DIES),
        "slice norm / ||X|| (log scale)",
        "slice, largest first",
    ),
    "scales": (lambda ax: plots.ridgelines(ax, np.exp(RNG.normal(size=(2, 30, 4)))), "", ""),
    "joint": (lambda ax: plots.joint_rank_heatmap(ax, JOINT, ["x", "y"]), "rank of x", "rank of y"),
    "accuracy": (
        lambda ax: plots.accuracy_against_rank(ax, {"SGHMC": (A.ranks, 0.9 + 0.01 * A.ranks), "MAP": (3, 0.9)}),
        "rank",
        "accuracy of one draw (%)",
    ),
    "reliability": (
        lambda ax: plots.reliability_diagram(ax, [None, 0.5, 0.9], [None, 0.4, 0.95]),
        "",
        "share that was right",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_in_axes_out_and_no_global_state(name):
    draw, xlabel, ylabel = FIGURES[name]
    before = dict(matplotlib.rcParams)
    with plots.style():
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        assert draw(axes) is axes
        figure.canvas.draw()  # every tick and label can be made
    assert dict(matplotlib.rcParams) == before
    assert (axes.get_xlabel(), axes.get_ylabel()) == (xlabel, ylabel)
    assert axes.has_data()


def test_bars_are_the_probabilities():
    axes = plots.rank_posterior_bars(Figure().add_subplot(), {"a": A})
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    for rank, height in heights.items():
        assert height == A.probabilities[rank]
    assert sum(heights.values()) == pytest.approx(1.0)


def test_the_mean_line_is_the_mean_accuracy_at_each_rank():
    accuracy = RNG.random(A.ranks.shape)
    axes = plots.accuracy_against_rank(Figure().add_subplot(), {"a": (A.ranks, accuracy)})
    x, y = axes.get_lines()[-1].get_data()
    np.testing.assert_array_equal(x, np.unique(A.ranks))
    np.testing.assert_allclose(y, [100 * accuracy[A.ranks == rank].mean() for rank in x])


def test_a_heat_map_shows_two_bonds():
    with pytest.raises(ValueError, match="joint has 1 axes and 1 names"):
        plots.joint_rank_heatmap(Figure().add_subplot(), A.probabilities, ["x"])


def test_matplotlib_is_loaded_by_the_first_figure_alone():
    code = "import sys, bayestensor.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
