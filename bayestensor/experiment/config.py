"""The experiment config: strict YAML in, one frozen `Config` out, and back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from bayestensor.errors import ConfigError
from bayestensor.experiment import messages, registry, yaml_io
from bayestensor.experiment.check import problems
from bayestensor.experiment.engines import switched
from bayestensor.experiment.sections import Count, Positive, Section, Share, one_of

S = TypeVar("S", bound=Section)


class Train(Section):
    """How long, in which portions."""

    epochs: Count = 40
    batch_size: Count = 128
    evaluate_every: Count = 1  # epochs
    patience: Count | None = None  # measurements in a row without a lower validation NLL that end training; null: none
    shift_pixels: Annotated[int, Field(ge=0, le=8)] = 0  # images move by up to this much, a fresh draw a step
    flip: bool = False  # images are mirrored left to right with probability one half, a fresh draw a step
    precision: Literal["float32", "bfloat16"] = "float32"  # of forward and backward passes; weights stay float32
    rematerialise: bool = False  # activations inside each layer are computed again for its gradient: less memory


class Prune(Section):
    """When slices are cut, and which."""

    epochs: tuple[Count, ...] = ()
    rule: Literal["norm_lost", "energy", "scale"] = "norm_lost"
    threshold: Share = 1e-2
    max_params: Count | None = None
    max_flops: Count | None = None
    max_ms: Positive | None = None
    granularity: Count = 1  # ranks are kept at multiples of this
    on_collapse: Literal["keep", "refuse"] = "keep"


class Config(Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: one_of(registry.DATASETS)  # type: ignore[valid-type]
    model: one_of(registry.MODELS) = registry.MODELS["mlp"](name="mlp")  # type: ignore
    prior: one_of(registry.PRIORS) = registry.PRIORS["half_cauchy"](name="half_cauchy")  # type: ignore
    engine: one_of(registry.ENGINES) = registry.ENGINES["map"](name="map")  # type: ignore
    train: Train = Train()
    prune: Prune = Prune()
    dense_twin: bool = True  # train the same network without tensors, too
    twin_learning_rate: Positive | None = None  # of the twin's own; null: as engine.optimizer


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file.

    Args:
        path: a YAML file.
        overrides: `dotted.key=value` strings, the value in YAML; a list is entered by index (`model.hidden.0=300`).
            `engine.name=...` goes first, and takes over what the file says of another engine (`engines.switched`).

    Raises:
        ConfigError: one line that names the key, what was given, what is allowed, and the nearest right name.
    """
    path = Path(path)
    raw = yaml_io.parse(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected a mapping with keys {', '.join(Config.model_fields)}, not {messages.given(raw)}"
        )
    for text in sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "engine.name"):
        override(raw, text)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip("._-")[:100]
    return build({"name": stem or "run"} | raw, str(path))


def build(raw: Mapping[str, Any], source: str = "config") -> Config:
    """A config from plain data, `source` naming where it came from in messages.

    Raises:
        ConfigError: as `load`.
    """
    try:
        config = Config.model_validate(_frozen(raw))
    except ValidationError as error:
        raise ConfigError(messages.explain(error, Config, raw, source)) from None
    found = problems(config)
    if found:
        raise ConfigError(messages.listed(found, source))
    return config


def load_section(kind: type[S], path: Path, seed: int | None = None) -> S:
    """A config that is one section, of an estimator's command; `seed` takes the place of its own.

    Raises:
        ConfigError: as `load`.
    """
    raw = yaml_io.parse(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping with keys {', '.join(kind.model_fields)}")
    raw = raw if seed is None else raw | {"seed": seed}
    try:
        return kind.model_validate(_frozen(raw))
    except ValidationError as error:
        raise ConfigError(messages.explain(error, kind, raw, str(path))) from None


def dump(config: Config) -> str:
    """Canonical YAML, every default written out: `load` reads an equal config back."""
    return yaml_io.dump(_thawed(config.model_dump()))


def read_text(path: Path) -> str:
    """The text of a file, with near names where it is not there.

    Raises:
        ConfigError: missing, a folder, unreadable, not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        try:
            beside = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
        except OSError:
            raise ConfigError(f"{path}: no such file; the folder {path.parent} is not there either") from None
        raise ConfigError(f"{path}: no such file{messages.nearest(path.name, beside)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def override(raw: dict[str, Any], text: str) -> None:
    """Set one `dotted.key=value` in plain config data, in place; sections on the way are made as needed.

    Raises:
        ConfigError: no `=`, a value that is not YAML, an index out of range, a path through a scalar.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {text!r}: expected dotted.key=value, for example engine.temperature=2")
    new = yaml_io.parse(value, f"override {key.strip()!r}")
    if parts == ["engine", "name"] and _switch_engine(raw, new):
        return
    here: Any = raw
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                where = ".".join(parts[:depth])
                raise ConfigError(f"override {text!r}: {where} has {len(here)} entries, counted from 0; no {part!r}")
            index: Any = int(part)
        else:
            index = part
            if not last and here.get(part) is None:
                here[part] = _default_at(raw, tuple(parts[: depth + 1]))
        if last:
            here[index] = new
        elif not isinstance(here[index], (dict, list)):
            raise ConfigError(f"override {text!r}: {'.'.join(parts[: depth + 1])} is {here[index]!r}, not a section")
        else:
            here = here[index]


def _switch_engine(raw: dict[str, Any], name: Any) -> bool:
    """Put another engine in the file's engine's place; False where there is nothing to take over."""
    section = raw.get("engine")
    if not isinstance(section, dict) or name not in registry.ENGINES:
        return False
    before = section.get("name", "map")
    if before == name or before not in registry.ENGINES:
        return False
    raw["engine"], left_out = switched(section, name)
    if left_out:
        keys = ", ".join(f"engine.{key}" for key in left_out)
        warnings.warn(f"engine.name={name}: left out {keys}, which the file sets for {before}", stacklevel=4)
    return True


def _default_at(raw: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What an override enters where the file says nothing: the default's name, or the default list."""
    section = messages.section_at(Config, raw, path[:-1])
    field = section.model_fields.get(path[-1]) if section else None
    default = field.default if field else None
    if isinstance(default, Section):
        return {"name": default.name} if hasattr(default, "name") else {}
    return _thawed(default) if isinstance(default, tuple) else {}


def _frozen(data: Any) -> Any:
    """Lists as tuples, which is what strict models take."""
    if isinstance(data, Mapping):
        return {key: _frozen(value) for key, value in data.items()}
    return tuple(map(_frozen, data)) if isinstance(data, (list, tuple)) else data


def _thawed(data: Any) -> Any:
    """Tuples as lists, a section's name first."""
    if isinstance(data, Mapping):
        return {key: _thawed(data[key]) for key in sorted(data, key=lambda key: key != "name")}
    return list(map(_thawed, data)) if isinstance(data, (list, tuple)) else data
