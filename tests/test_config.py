"""The strict config: what is read, what is refused, and in which words."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest

from bayestensor.errors import ConfigError
from bayestensor.experiment import config as configs
from bayestensor.experiment import engines, registry, yaml_io
from bayestensor.experiment.check import check
from bayestensor.experiment.layers import blueprint
from bayestensor.experiment.sections import FORMAT_NAMES
from bayestensor.tensor.formats import FORMATS

GOOD = """
data: {name: mnist, validation: 0.1}
model:
  name: mlp
  hidden: [625]
  format: tt_matrix
  rank: 20
  shapes: [[[7, 4, 7, 4], [5, 5, 5, 5]], [[25, 25], [5, 2]]]
prior: {name: log_uniform, s_min: 1e-3}
engine: {name: map, temperature: 2, optimizer: {name: adamw, learning_rate: 5e-3, schedule: cosine}}
train: {epochs: 40, batch_size: 128}
prune: {epochs: [8, 16, 24, 32], rule: norm_lost, threshold: 0.01}
"""


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "mnist_fc_map.yaml"
    path.write_text(GOOD)
    return path


def test_reads_what_is_written(good):
    config = configs.load(good)
    assert config.name == "mnist_fc_map"
    assert config.prior.s_min == 1e-3  # YAML 1.1 would read text
    assert config.engine.temperature == 2.0
    assert config.engine.optimizer.weight_decay == 1e-4
    assert config.model.shapes == (((7, 4, 7, 4), (5, 5, 5, 5)), ((25, 25), (5, 2)))
    with pytest.raises(Exception, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("engine.temperature=2.5", lambda c: c.engine.temperature == 2.5),
        ("engine.optimizer.learning_rate=1e-2", lambda c: c.engine.optimizer.learning_rate == 0.01),
        ("prune.epochs.1=17", lambda c: c.prune.epochs == (8, 17, 24, 32)),
        ("prior={name: gamma, rate: 7}", lambda c: c.prior.name == "gamma" and c.prior.rate == 7),
        ("prune.max_params=2500", lambda c: c.prune.max_params == 2500),
        ("name=other", lambda c: c.name == "other"),
        ("model.rank=full", lambda c: c.model.rank == "full"),
        ("data.validation=0", lambda c: c.data.validation == 0.0),
        ("engine.refit_temperature=null", lambda c: c.engine.refit_temperature is None),
    ],
)
def test_overrides(good, override, read):
    assert not read(configs.load(good)) or "null" in override
    assert read(configs.load(good, [override]))


def test_overrides_enter_sections_the_file_leaves_out(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("data: {name: digits}")
    overrides = ["engine.optimizer.learning_rate=0.5", "model.hidden.0=32", "train.epochs=3", "prior.bias_sd=2"]
    config = configs.load(path, overrides)
    assert config.engine.optimizer.learning_rate == 0.5
    assert config.model.hidden == (32,)
    assert config.train.epochs == 3
    assert (config.prior.name, config.prior.bias_sd) == ("half_cauchy", 2.0)
    with pytest.raises(ConfigError, match=r"unknown key .*; did you mean 'temperature'"):
        configs.load(path, ["engine.temprature=2"])


@pytest.mark.parametrize("seed", range(20))
def test_dump_loads_to_an_equal_config(tmp_path, seed):
    rng = np.random.default_rng(seed)
    raw = {
        "name": str(rng.choice(["on", "1e-3", "007", "null", "a.b-c_d", "true"])),  # words a YAML reader may mistake
        "seed": int(rng.integers(2**32)),
        "data": {"name": str(rng.choice(list(registry.DATASETS))), "validation": float(rng.uniform(0, 0.5))},
        "prior": {"name": str(rng.choice(list(registry.PRIORS))), "bias_sd": float(10 ** rng.uniform(-30, 30))},
        "engine": {
            "name": "map",
            "optimizer": {
                "name": str(rng.choice(list(registry.OPTIMIZERS))),
                "learning_rate": 10 ** rng.uniform(-9, 0),
            },
        },
        "model": {
            "name": "mlp",
            "format": "svd",  # the one that all priors take
            "rank": {"b1": 3, "b2": 4},
            "hidden": [int(rng.integers(1, 99))] * int(rng.integers(4)),
        },
        "prune": {"epochs": sorted(rng.choice(np.arange(1, 40), 3, replace=False).tolist())},
    }
    config = configs.build(raw)
    (tmp_path / "again.yaml").write_text(configs.dump(config))
    again = configs.load(tmp_path / "again.yaml")
    assert again == config
    assert configs.dump(again) == configs.dump(config)


# --- what is refused: an override, and what its one line must hold --------------------------------------------

BAD_VALUES = [
    ("engine.temprature=2", ["engine.temprature", "unknown key", "given 2", "'temperature'", "mode_damping"]),
    ("modle.rank=3", ["modle", "unknown key", "'model'", "train"]),
    ("temperature=3", ["temperature", "unknown key", "did you mean 'engine.temperature'"]),
    ("prior.eta=1", ["prior.eta", "unknown key", "s_max"]),  # a hyperparameter of another prior
    ("engine.optimizer.nesterov2=true", ["engine.optimizer.nesterov2", "'nesterov'"]),
    ("engine.optimizer={name: sgd, b1: 0.9}", ["engine.optimizer.b1", "unknown key", "momentum"]),
    ("data.name=minst", ["data.name", '"minst"', "digits", "'mnist'"]),
    ("data.name=os.system", ["data.name", '"os.system"', "digits"]),
    ("engine.optimizer.name=adamm", ["engine.optimizer.name", "'adam'"]),
    ("model.activation=relo", ["model.activation", '"relo"', "'relu'", "silu"]),
    ("model.format=tt", ["model.format", "'tt_matrix'"]),
    ("prior={}", ["prior.name", "missing", "half_cauchy"]),
    ("data=digits", ["data", '"digits"', "a mapping"]),
    ("seed=1.5", ["seed", "1.5", "whole number"]),
    ("seed=-1", ["seed", "-1", "at least 0"]),
    ("seed=true", ["seed", "true", "whole number"]),
    ("train.epochs=ten", ["train.epochs", '"ten"', "whole number"]),
    ("train.epochs=0", ["train.epochs", "0", "at least 1"]),
    ("dense_twin=1", ["dense_twin", "1", "true or false"]),
    ("engine.temperature=.nan", ["engine.temperature", "NaN", "finite"]),
    ("engine.scale_floor=.inf", ["engine.scale_floor", "Infinity", "finite"]),
    ("engine.mode_damping=1.5", ["engine.mode_damping", "1.5", "at most 1"]),
    ("data.validation=0.6", ["data.validation", "0.6", "at most 0.5"]),
    ("name=../evil", ["name", '"../evil"', "letters"]),
    ("model.rank=-4", ["model.rank", "-4", "at least 1", "'full'"]),
    ("model.rank=0", ["model.rank", "0", "at least 1"]),
    ("model.rank={b1: 0}", ["model.rank", "'b1'", "at least 1"]),
    ("model.hidden=[625, 2.5]", ["model.hidden.1", "2.5", "whole number"]),
    ("model.hidden=625", ["model.hidden", "625", "a list"]),
    ("model.shapes.1.1=[5, 3]", ["model.shapes.1.1", "product 15", "product 10", "layers.1"]),
    ("model.shapes.0.0=[28, 29]", ["model.shapes.0.0", "product 812", "product 784"]),
    ("model.shapes.0.0=[28, 28]", ["model.shapes.0", "2 input and 4 output", "fill up"]),
    ("model.shapes=[[[784], [625]]]", ["model.shapes", "1 entries", "expected 2"]),
    ("model.shapes.0.0.1=-4", ["model.shapes.0.0.1", "-4", "at least 1"]),
    ("model.format=dense", ["model.shapes", "dense"]),
    ("prune.epochs=[8, 40]", ["prune.epochs", "40", "below train.epochs"]),
    ("prune.epochs=[16, 8]", ["prune.epochs", "rising"]),
    ("prune.epochs.9=3", ["prune.epochs", "4 entries", "'9'"]),
    ("prune.threshold=1", ["prune.threshold", "below 1"]),
    ("train.batch_size=54001", ["train.batch_size", "54001", "at most the 54000"]),
    ("engine.warmup_epochs=41", ["engine.ramp_epochs", "41", "at most train.epochs"]),
    ("prior.s_min=200", ["prior.s_min", "200", "below prior.s_max"]),
    ("engine.temperature", ["expected dotted.key=value"]),
    ("=3", ["expected dotted.key=value"]),
    ("seed.x=3", ["seed", "whole number"]),
    ("data.name.x=3", ["data.name", "not a section"]),
    ("seed=!!python/object/apply:os.system [true]", ["seed", "YAML tag", "python"]),
    ("train={epochs: a, batch_size: b, z: 1}", ["train.epochs", "(+2 more)"]),
]


@pytest.mark.parametrize(("override", "fragments"), BAD_VALUES, ids=[row[0] for row in BAD_VALUES])
def test_bad_values_are_named_on_one_line(good, override, fragments):
    with pytest.raises(ConfigError) as caught:
        configs.load(good, [override])
    message = str(caught.value)
    assert "\n" not in message
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, message


BAD_FILES = [
    ("seed: !!python/object/apply:os.system ['touch pwned']", ["YAML tag", "line 1"]),
    ("seed: !!set {a}", ["YAML tag"]),
    ("a: &a [1]\nb: *a", ["anchors", "line 1"]),
    ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]", ["anchors"]),  # a small bomb
    ("seed: 1\ndata: {name: digits}\nseed: 2", ["'seed' is given twice", "line 3"]),
    ("data: {name: digits, name: mnist}", ["'name' is given twice"]),
    ("[" * 10_000, ["nested"]),
    ("data: [1", ["line 1"]),
    ("- 1\n- 2", ["expected a mapping", "data"]),
    ("", ["expected a mapping"]),
    ("a: " + "1" * 5000, ["not valid YAML"]),
    ("a: \x00", ["not valid YAML"]),
    ("? [1, 2]\n: 3", ["single word"]),
    ("--- {}\n--- {}", ["document"]),
    ("seed: 3", ["data", "missing"]),
]


@pytest.mark.parametrize(("text", "fragments"), BAD_FILES)
def test_bad_files_are_refused_on_one_line(tmp_path, monkeypatch, text, fragments):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "bad.yaml" in message
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, message
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.yaml"]  # nothing was executed


def test_unreadable_files(tmp_path, good):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, fragments in (
        (tmp_path / "mnist_fc_mpa.yaml", ["no such file", "'mnist_fc_map.yaml'"]),
        (tmp_path / "nowhere" / "x.yaml", ["nowhere", "not there"]),
        (tmp_path, ["cannot be read"]),
        (binary, ["UTF-8"]),
    ):
        with pytest.raises(ConfigError) as caught:
            configs.load(path)
        assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


def test_yaml_reads_back_what_it_writes():
    rng = np.random.default_rng(0)
    words = [
        "1e-3",
        "no",
        "12:30",
        "~",
        "null",
        "True",
        ".inf",
        "+1",
        "<<",
        "a: b",
        "x\ny",
        "é",
        "",
        " a",
        "0x1",
        "-",
        "#",
    ]
    for _ in range(200):
        values = [*rng.choice(words, 3).tolist(), float(10 ** rng.uniform(-300, 300)), int(rng.integers(-9, 9)), None]
        data = {word: values for word in rng.choice(words, 3).tolist()}
        assert yaml_io.parse(yaml_io.dump(data), "again") == data


def test_check_gives_the_layers_of_the_first_paper(good):
    config = configs.load(good)
    layers = check(config)
    assert blueprint(config).widths == (784, 625, 10)
    assert sum(layer.dense_parameters for layer in layers) == 496_885  # TARGETS: arithmetic of the first paper
    assert sum(layer.parameters for layer in layers) == 27_235
    assert layers[0].network.matrix_shape == (625, 784)
    assert [layer.activation for layer in layers] == ["relu", None]


def test_check_counts_operations():
    """One dense-like network: a tensor train of one mode a side at full rank is two matrix products."""
    raw = {"name": "x", "data": {"name": "digits"}, "train": {"batch_size": 1}}
    model = {"name": "mlp", "hidden": [], "output_bias": False, "format": "tensor_train", "rank": 3}
    (layer,) = check(configs.build(raw | {"model": model | {"shapes": [[[64], [10]]]}}))
    assert layer.flops(1) == 2 * 64 * 3 + 2 * 3 * 10  # x B, then A: a multiplication and an addition each


@pytest.mark.parametrize("model_format", ["dense", *FORMATS])
def test_check_takes_every_format(model_format):
    assert model_format in FORMAT_NAMES
    raw = {
        "name": "x",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [32], "rank": 2, "format": model_format},
    }
    assert [(layer.in_features, layer.out_features) for layer in check(configs.build(raw))] == [(64, 32), (32, 10)]


@pytest.mark.parametrize(
    ("rank", "fragments"), [({"b7": 2}, ["model.rank", "b7", "b1"]), (10**8, ["model.rank", "at most 1000000000"])]
)
def test_check_refuses_ranks_the_layers_cannot_have(good, rank, fragments):
    config = configs.build({"name": "x", "data": {"name": "mnist"}, "model": {"name": "mlp", "rank": rank}})
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


# --- optimisers -----------------------------------------------------------------------------------------------


@pytest.mark.promoting  # Optax's bias correction
@pytest.mark.parametrize("name", engines.OPTIMIZER_OPTIONS)
def test_optimisers_agree_with_optax_and_descend(name):
    import jax
    import jax.numpy as jnp
    import optax

    from bayestensor.experiment.optimizers import optimizer

    parameters = inspect.signature(getattr(optax, name)).parameters
    assert set(engines.OPTIMIZER_OPTIONS[name]) <= set(parameters)
    transform = optimizer(engines.OPTIMIZERS[name](name=name, learning_rate=0.05, clip=10.0), steps=50)

    @jax.jit
    def final(start):
        def step(carry, _):
            x, state = carry
            updates, state = transform.update(jax.grad(lambda x: (x**2).sum())(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (start, transform.init(start)), length=50)[0][0]

    start = jnp.array([1.0, -2.0])
    assert (final(start) ** 2).sum() < (start**2).sum()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1]), ("linear", [0.25, 0.5, 0.75, 1, 1, 0.775, 0.55])],
)
def test_learning_rate_climbs_then_falls(schedule, expected):
    from bayestensor.experiment.optimizers import learning_rate

    section = engines.OPTIMIZERS["adam"](name="adam", learning_rate=1.0, schedule=schedule, warmup=0.5, final=0.1)
    rate = learning_rate(section, steps=8)
    np.testing.assert_allclose([rate(k) for k in range(7)], expected, rtol=1e-6)
    assert np.isclose(rate(8), 1.0 if schedule == "constant" else 0.1)


def test_reading_a_config_does_not_start_jax(good):
    code = (
        f"import sys; from bayestensor.experiment.config import load; load({str(good)!r}); print('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
