"""What an engine cannot do on a model is refused before anything starts, with the figure and the way out."""

from __future__ import annotations

import pytest

from bayestensor.errors import ConfigError
from bayestensor.experiment import check, config
from bayestensor.experiment.engines import ENGINES

SMALL = {
    "name": "small",
    "data": {"name": "digits", "validation": 0.1},
    "model": {"name": "mlp", "hidden": [16], "rank": 4},
    "prior": {"name": "log_uniform"},
    "engine": {"name": "sghmc", "chains": 2, "burn_in": 2, "epochs": 2, "draws": 6},
    "train": {"epochs": 2, "batch_size": 128},
    "dense_twin": False,
}

REFUSED = {  # what was given -> (engine section, other sections, key, fragments: the figure and the way out)
    "more draws than steps": ({"draws": 1000}, {}, "engine.draws", ["at most the 20 steps"]),
    "a batch larger than the data": ({"batch_size": 5000}, {}, "engine.batch_size", ["at most the 1293"]),
    "an odd batch": ({"batch_size": 101}, {}, "engine.batch_size", ["given 101", "even"]),
    "exact draws at another temperature": (
        {"scale_draws": 1, "temperature": 0.5},
        {},
        "engine.scale_draws",
        ["exact draws have temperature 1", "set null"],
    ),
    "exact draws under a prior without": (
        {"scale_draws": 1},
        {"prior": {"name": "gamma"}},
        "engine.scale_draws",
        ["gamma has no conditional draws", "half_cauchy"],
    ),
    "more chains than memory": ({"chains": 10**9}, {}, "engine.chains", ["GB", "this machine has", "at most"]),
    "more particles than memory": (
        {"name": "svgd", "particles": 10**9},
        {},
        "engine.particles",
        ["GB", "this machine has", "at most"],
    ),
    "more draws than memory": (
        {"draws": 10**8, "epochs": 10**8},
        {},
        "engine.draws",
        ["GB to predict with", "this machine has", "at most"],
    ),
    "NUTS on a million parameters": (
        {"name": "nuts", "epochs": 9},
        {"model": SMALL["model"] | {"hidden": [8192], "format": "dense", "rank": 1}},
        "engine.name",
        ["nuts for 614,410 coordinates", "at most 2,000", "take sghmc"],
    ),
    "NUTS on a large network": ({"name": "nuts", "epochs": 9}, {}, "engine.name", ["at most 2,000", "take sghmc"]),
    "a tempered fit": ({"name": "variational", "temperature": 2}, {}, "engine.temperature", ["expected 1"]),
    "a start without training, and cuts": (
        {"start": {"name": "prior"}},
        {"prune": {"epochs": [1]}},
        "prune.epochs",
        ["leave it out"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_an_engine_cannot_do_is_said_before_it_starts(what):
    engine, sections, key, fragments = REFUSED[what]
    shared = {"start", "epochs", "draws", "burn_in"} | ({"chains"} if engine.get("name") != "svgd" else set())
    base = {name: value for name, value in SMALL["engine"].items() if name in {"name"} | shared}
    wide = {"model": SMALL["model"] | {"hidden": [256], "rank": 16}}
    with pytest.raises(ConfigError) as caught:
        check.check(config.build(SMALL | {"engine": base | engine} | wide | sections))
    message = str(caught.value)
    assert key in message and "\n" not in message
    assert all(fragment in message for fragment in fragments), message


def test_defaults_of_every_engine_fit_the_smallest_data():
    for name in ENGINES:
        start = {} if name in ("map", "ensemble") else {"start": {"name": "map"}}
        check.check(config.build(SMALL | {"engine": {"name": name} | start}))
