"""A trained dense model, its weights made tensor networks: accuracy right after, after fine-tuning, and from scratch.

python experiments/tensorize/run.py [--models lenet5 encoder resnet20] [--seeds 0 1 ...] [--smaller 4 8]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import bayestensor as bt
from bayestensor.compression.report import count
from bayestensor.data.text import load_snips
from bayestensor.models.convnet import ConvNet, Reference, calibrated, resnet
from bayestensor.models.sequence import transformer_encoder
from bayestensor.models.stage import Stage
from bayestensor.nn.weight import TensorWeight

TUNING = 2  # epochs of fine-tuning
TEMPERATURE = 0.1
IMAGES = 10_000  # of MNIST's 60,000, to train on
LENGTH = 16  # tokens of an utterance


class Task(NamedTuple):
    """A dense model on its data, how long it is trained, and how fast."""

    model: nnx.Module
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    epochs: int
    rate: float  # of the dense model
    tensor_rate: float  # of networks, fine-tuned or from scratch


def lenet5(seed: int) -> Task:
    data = bt.load_dataset("mnist")
    first = Stage((28, 28, 1), 6)
    stages = [(first, None), (Stage(first.out_shape, 16), None)]
    model = ConvNet(stages, [(256, 120), (120, 84), (84, 10)], rngs=nnx.Rngs(seed))
    x, x_test = ((part.reshape(len(part), -1).astype(np.float32) - 33) / 79 for part in (data.x_train, data.x_test))
    return Task(model, x[:IMAGES], data.y_train[:IMAGES], x_test, data.y_test, 4, 2e-3, 5e-3)


def encoder(seed: int) -> Task:
    data = load_snips(length=LENGTH)
    model = transformer_encoder(len(data.words), LENGTH, 64, 7, format="dense", rngs=nnx.Rngs(seed))
    return Task(model, data.x_train, data.y_train, data.x_test, data.y_test, 4, 1e-3, 5e-3)


def resnet20(seed: int) -> Task:
    """On 8 x 8 digits: CIFAR-10's images would take hours on a CPU."""
    data = bt.load_dataset("digits")
    model = resnet(20, format="dense", in_shape=(8, 8, 1), rngs=nnx.Rngs(seed))
    x, x_test = ((part.reshape(len(part), -1).astype(np.float32) - 5) / 6 for part in (data.x_train, data.x_test))
    return Task(model, x, data.y_train, x_test, data.y_test, 8, 2e-3, 5e-3)


TASKS = {"lenet5": lenet5, "encoder": encoder, "resnet20": resnet20}


def train(model: nnx.Module, task: Task, epochs: int, rate: float, seed: int) -> tuple[nnx.Module, dict]:
    """The trained model, and its accuracy on the test set."""
    schedule = optax.cosine_decay_schedule(rate, epochs * (len(task.x) // 128))
    fit = bt.fit_map(
        model,
        task.x,
        task.y,
        optimizer=optax.adam(schedule),
        epochs=epochs,
        batch_size=128,
        temperature=TEMPERATURE,
        ramp_epochs=1,
        seed=seed,
    )
    return fit.module, scores(fit.predict(task.x_test), task)


def scores(logits: Any, task: Task) -> dict:
    log_p = np.asarray(jax.nn.log_softmax(np.asarray(logits)))
    nll = -log_p[np.arange(len(log_p)), task.y_test].mean()
    return {"accuracy": float((log_p.argmax(1) == task.y_test).mean()), "nll": float(nll)}


def untouched(model: nnx.Module, task: Task) -> dict:
    """As it is, but for statistics of batch normalisation."""
    reference = Reference.of(model, task.x, 128)
    model = model if reference is None else calibrated(model, *reference)
    graphdef, state = nnx.split(model)
    call = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    pieces = [call(state, piece) for piece in np.array_split(task.x_test, 10)]
    return scores(np.concatenate(pieces), task)


def rows(name: str, seed: int, factors: list[float]):
    """One record a way, as they come."""
    task = TASKS[name](seed)
    dense, found = train(task.model, task, task.epochs, task.rate, seed)
    size = count(dense)

    def record(way: str, smaller: float, parameters: int, found: dict, **more) -> dict:
        about = {"model": name, "seed": seed, "way": way, "smaller": smaller, "dense": size, "parameters": parameters}
        return about | found | more

    yield record("dense", 1, size, found, epochs=task.epochs)
    longer = train(dense, task, TUNING, task.rate, seed + 1)[1]
    yield record("dense, trained on", 1, size, longer, epochs=task.epochs + TUNING)
    for smaller in factors:
        made = bt.tensorize(dense, smaller=smaller, key=jax.random.key(seed))
        errors = {layer.path: layer.error for layer in made.layers if layer.error is not None}
        yield record("converted", smaller, made.after, untouched(made.model, task), epochs=task.epochs, errors=errors)
        tuned = train(made.model, task, TUNING, task.tensor_rate, seed + 1)[1]
        yield record("fine-tuned", smaller, made.after, tuned, epochs=task.epochs + TUNING)
        epochs = task.epochs + TUNING
        found = train(untrained(made.model, task.model, seed), task, epochs, task.tensor_rate, seed)[1]
        yield record("from scratch", smaller, made.after, found, epochs=epochs)


def untrained(converted: nnx.Module, start: nnx.Module, seed: int) -> nnx.Module:
    """The same networks with cores at random, everything else as the dense model started."""
    model = nnx.clone(converted)
    before = dict(nnx.to_flat_state(nnx.state(start, nnx.Param)))
    weights = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, TensorWeight)}
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path in before:
            parameter[...] = before[path][...].reshape(parameter.shape)
    for number, weight in enumerate(weights.values()):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(weight.cores))
        for key, core in zip(keys, weight.cores.values(), strict=True):
            core[...] = math.sqrt(weight.core_variance) * jax.random.normal(key, core.shape)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--smaller", nargs="+", type=float, default=[4.0, 8.0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    keys = ("model", "seed", "way", "smaller")
    done = {tuple(record[key] for key in keys) for record in map(json.loads, lines)}
    for seed in options.seeds:
        for name in options.models:
            spent = time.process_time()
            for record in rows(name, seed, options.smaller):
                record["cpu_seconds"] = time.process_time() - spent
                print(record, flush=True)
                spent = time.process_time()
                if tuple(record[key] for key in keys) in done:
                    continue
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
