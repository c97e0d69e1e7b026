"""A run's compressed model, to where it runs: StableHLO, and NumPy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from bayestensor.experiment import model_file
from bayestensor.experiment.folder import open_run
from bayestensor.files import vacant, write_atomically, writing
from bayestensor.tensor.network import Network
from bayestensor.tensor.paths import contraction_path

PLATFORMS = ("cpu", "cuda")
NOMINAL_BATCH = 128  # what the stored order of contraction is cheapest for

_README = """# {name}

A compressed network: {parameters} parameters{mixture}, {classes} classes, inputs of shape {input_shape} as they come
(scaling is inside).

| file | what |
|---|---|
| model.npz, model.json | the parameters (float32), and what they mean |
| predict.py | `python predict.py x.npy [-o p.npy]`, which needs NumPy only: classes, or probabilities into a file |
| model.stablehlo | the logits of (n, {width}) float32 inputs, any n, for {platforms} |

```python
import jax.export
model = jax.export.deserialize(open("model.stablehlo", "rb").read())
logits = model.call(x)   # x: (n, {width}) float32
```
"""


def _matvec_terms(network: Network, batch: int) -> tuple[tuple, tuple, tuple[str, ...]]:
    """The einsum behind `matvec` on a batch: legs and shapes, input first then cores, and the legs that stay."""
    size = network.size | {"batch": batch}
    legs = (("batch", *network.cols), *(core.legs for core in network.cores))
    return legs, tuple(tuple(size[leg] for leg in term) for term in legs), ("batch", *network.rows)


def export(run_dir: str | Path, out_dir: str | Path) -> Path:
    """Write the model of a finished run into a new folder.

    Args:
        run_dir: a run folder that holds model.npz and model.json.
        out_dir: a folder that is empty or not there yet.

    Raises:
        RunError: no run, no model in it, or a folder that is taken or cannot be written.
    """
    folder = open_run(run_dir)
    spec, arrays = model_file.load_model(folder.model_stem)
    out = vacant(Path(out_dir))
    serialised = stablehlo(spec, arrays)  # before anything is written
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    model_file.save_model(out / "model", with_paths(spec), arrays)
    write_atomically(out / "model.stablehlo", serialised)
    write_atomically(out / "predict.py", Path(__file__).with_name("predict.py").read_bytes())
    text = _README.format(
        name=folder.config().name,
        parameters=sum(array.size for array in arrays.values()),
        mixture=f" in {spec['members']} members, whose mean probability it gives" if "members" in spec else "",
        input_shape=tuple(spec["input_shape"]),
        width=math.prod(spec["input_shape"]),
        classes=spec["classes"],
        platforms=" and ".join(PLATFORMS),
    )
    write_atomically(out / "README.md", text.encode())
    return out


def stablehlo(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The logits as serialised StableHLO, parameters inside, for any batch size."""
    weights = {name: jnp.asarray(array) for name, array in arrays.items()}

    def forward(x):
        with jax.default_matmul_precision("float32"):  # not the TF32 that CUDA would choose
            return jax.vmap(lambda row: model_file.apply(spec, weights, row))(x)

    batch = jax.export.symbolic_shape("n")[0]
    x = jax.ShapeDtypeStruct((batch, math.prod(spec["input_shape"])), jnp.float32)
    return bytes(jax.export.export(jax.jit(forward), platforms=PLATFORMS)(x).serialize())


def with_paths(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with each network's order of contraction, input first, cheapest for `NOMINAL_BATCH`."""
    layers = []
    for layer in spec["layers"]:
        network = model_file.layer_network(layer)
        if network is not None:
            path = contraction_path(*_matvec_terms(network, NOMINAL_BATCH))
            layer = layer | {"network": layer["network"] | {"path": [list(pair) for pair in path]}}
        layers.append(layer)
    return json.loads(json.dumps(dict(spec) | {"layers": layers}))
