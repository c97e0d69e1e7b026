"""Who may import whom, read from the source with `ast`: no module is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bayestensor"

# part (folder or module at the top level) -> the parts, or single modules, of bayestensor that it may import
MAY_IMPORT = {
    "typing": set(),
    "errors": set(),
    "files": {"errors"},
    "tensor": {"typing"},
    "inference": {"typing", "errors", "files"},
    "metrics": {"typing"},
    "plots": {"ranks"},
    "data": {"typing", "errors"},
    "priors": {"tensor", "typing"},
    "nn": {"tensor", "typing"},
    "models": {"priors", "nn", "tensor", "typing", "inference.base"},
    "ranks": {"tensor", "priors", "inference.draws", "typing"},
}
BELOW = set(MAY_IMPORT)
FRONTS = {"fit", "estimators", "compression"}  # one-call entries over everything below them
MAY_IMPORT |= {front: BELOW for front in FRONTS}
LIBRARY = BELOW | FRONTS
MAY_IMPORT["experiment"] = LIBRARY
MAY_IMPORT["cli"] = LIBRARY | {"experiment"}

FLAX = {"nn", "models", "experiment", "fit", "compression"}  # the only parts that may import it


def part_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def imported(source: str, module: str) -> set[str]:
    """Absolute names of the modules (or `module.name`) that a source imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x, from ..part import x
                package = f"bayestensor.{module}".split(".")[: -node.level]
                base = ".".join([*package, *filter(None, [base])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def violations(source: str, module: str) -> list[str]:
    """Imports of `module` (a dotted name below bayestensor) that the table does not allow."""
    part, wrong = part_of(module), []
    for name in sorted(imported(source, module)):
        top, _, below = name.partition(".")
        if top == "flax" and part not in FLAX:
            wrong.append(f"{module} imports {name}; only {sorted(FLAX)} may import flax")
        if top != "bayestensor" or part_of(below) in (part, "__version__"):
            continue
        if not any(below == allowed or below.startswith(f"{allowed}.") for allowed in MAY_IMPORT[part]):
            wrong.append(f"{module} imports {name}; {part} may import {sorted(MAY_IMPORT[part])}")
    return wrong


def modules() -> dict[str, Path]:
    out = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name not in ("__init__", "__main__"):
            out[name] = path
    return out


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module):
    assert violations(modules()[module].read_text(), module) == []


def test_every_part_has_its_rule():
    assert {part_of(module) for module in modules()} <= set(MAY_IMPORT)


def test_the_table_has_no_cycle():
    done: set[str] = set()
    left = dict(MAY_IMPORT)
    while left:
        free = [part for part, needs in left.items() if {part_of(need) for need in needs} <= done]
        assert free, f"a cycle among {sorted(left)}"
        done |= set(free)
        left = {part: needs for part, needs in left.items() if part not in free}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tensor.contract", "from bayestensor.inference.base import Posterior"),
        ("inference.map", "import bayestensor.tensor.network"),
        ("inference.map", "def f():\n    from bayestensor.tensor import network"),
        ("inference.map", "from ..tensor import network"),
        ("inference.map", "from bayestensor import tensor"),
        ("models.neural", "from bayestensor.inference import sghmc"),
        ("ranks.select", "from bayestensor.inference.run import run"),
        ("priors.gamma", "from bayestensor.nn import linear"),
        ("metrics.calibration", "from bayestensor.data import loaders"),
        ("data.loaders", "from bayestensor import metrics"),
        ("typing", "from bayestensor.tensor.network import Factored"),
        ("experiment.run", "from bayestensor.cli import main"),
        ("priors.gamma", "from flax import nnx"),
        ("inference.map", "import flax.nnx"),
    ],
)
def test_a_violation_is_caught(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tensor.contract", "import jax\nfrom bayestensor.typing import Array\nfrom . import network"),
        (
            "models.posterior",
            "from bayestensor.inference.base import Posterior\nfrom bayestensor.inference import base",
        ),
        ("ranks.explore", "from bayestensor.inference.draws import Draws"),
        ("nn.linear", "from flax import nnx"),
        ("cli", "from bayestensor import __version__\nfrom bayestensor.experiment import run"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert violations(source, module) == []
