"""Validation errors as one line: the key, what was given, what is allowed, the nearest right name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "above {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "below {}"),
    "less_than_equal": ("le", "at most {}"),
    "too_short": ("min_length", "a list of at least {}"),
    "string_too_long": ("max_length", "at most {} characters"),
}


def nearest(name: Any, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    close = close or [right for right in known if name and right.startswith(str(name))]
    return f"; did you mean {close[0]!r}?" if close else ""


def given(value: Any) -> str:
    """A value as it may stand in a message: short, on one line, lists in brackets."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(messages: Sequence[str], source: str) -> str:
    """The first message, and how many more there are."""
    more = f" (+{len(messages) - 1} more)" if len(messages) > 1 else ""
    return f"{source}: {messages[0]}{more}"


def explain(error: ValidationError, schema: type[BaseModel], raw: Mapping[str, Any], source: str) -> str:
    """One line for a failed validation of `raw` against `schema`."""
    found: dict[str, str] = {}
    for entry in error.errors(include_url=False, include_context=True):
        path = _path_in(raw, entry["loc"], keep_last=entry["type"] in ("missing", "extra_forbidden"))
        found.setdefault(".".join(map(str, path)), _explain_one(entry, path, schema, raw))
    return listed(list(found.values()), source)


def _explain_one(entry: Any, path: Path, schema: type[BaseModel], raw: Mapping[str, Any]) -> str:
    key, kind, context = ".".join(map(str, path)) or "config", entry["type"], entry.get("ctx", {})
    value = given(_at(raw, path)) if kind != "missing" else ""
    if kind == "extra_forbidden":
        section = section_at(schema, raw, path[:-1])
        known = list(section.model_fields) if section else []
        elsewhere = _elsewhere(schema, str(path[-1]), raw)
        moved = elsewhere and key not in elsewhere  # a right key in the wrong section
        near = f"; did you mean {elsewhere[0]!r}?" if moved else nearest(path[-1], known)
        return f"{key}: unknown key (given {value}); known keys: {', '.join(known)}{near}"
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{key}.name: missing; expected one of {_choices(schema, raw, path)}"
    if kind in ("union_tag_invalid", "literal_error"):
        if kind == "union_tag_invalid":
            name, key = _at(raw, path)["name"], key + ".name"
            known = _choices(schema, raw, path).split(", ")
        else:
            name, known = _at(raw, path), _quoted(context["expected"])
        return f"{key}: given {given(name)}; expected one of {', '.join(known)}{nearest(name, known)}"
    if kind == "value_error":
        return f"{key}: given {value}; {context['error']}"
    if kind in _BOUNDS:
        field, phrase = _BOUNDS[kind]
        return f"{key}: given {value}; expected {phrase.format(context[field])}"
    if kind == "finite_number":
        return f"{key}: given {value}; expected a finite number"
    if kind == "string_pattern_mismatch":
        return f"{key}: given {value}; expected letters, digits, '.', '_' and '-', starting with a letter or digit"
    expected = _KINDS.get(kind.removesuffix("_type").removesuffix("_from_float").removesuffix("_parsing"))
    return f"{key}: given {value}; " + (f"expected {expected}" if expected else entry["msg"])


def _path_in(raw: Any, loc: Path, keep_last: bool) -> Path:
    """Where in the user's data an error lies: pydantic's location without the names of union members."""
    path: list[str | int] = []
    for depth, part in enumerate(loc):
        inside = (isinstance(raw, Mapping) and part in raw) or (
            isinstance(raw, (list, tuple)) and isinstance(part, int) and part < len(raw)
        )
        if inside:
            raw = raw[part]
        if inside or (keep_last and depth == len(loc) - 1):
            path.append(part)
    return tuple(path)


def _at(raw: Any, path: Path) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _elsewhere(schema: type[BaseModel], key: str, raw: Any, prefix: str = "") -> list[str]:
    """Dotted paths at which the sections that the user's data chose know a key."""
    found = [prefix + key] if prefix and key in schema.model_fields else []
    for name, field in schema.model_fields.items():
        inside = raw.get(name) if isinstance(raw, Mapping) else None
        chosen = inside.get("name") if isinstance(inside, Mapping) else getattr(field.default, "name", None)
        members = _members(field.annotation)
        for member in [m for m in members if chosen in _names(m)] or members:
            found += _elsewhere(member, key, inside, f"{prefix}{name}.")
    return list(dict.fromkeys(found))


def _names(section: type[BaseModel]) -> tuple[str, ...]:
    field = section.model_fields.get("name")
    return get_args(field.annotation) if field else ()


def _options_at(schema: type[BaseModel], raw: Any, path: Path) -> list[type[BaseModel]]:
    """The sections allowed at a path."""
    options = [schema]
    for depth, part in enumerate(path):
        name = _at(raw, path[:depth]).get("name") if depth else None
        section = next((option for option in options if name in _names(option)), options[0])
        options = _members(section.model_fields[str(part)].annotation) if part in section.model_fields else []
        if not options:
            return []
    return options


def section_at(schema: type[BaseModel], raw: Any, path: Path) -> type[BaseModel] | None:
    """The section that stands at a path of the user's data; None where none does."""
    options = _options_at(schema, raw, path)
    name = _at(raw, path).get("name")
    return next((option for option in options if name in _names(option)), options[0] if options else None)


def _choices(schema: type[BaseModel], raw: Any, path: Path) -> str:
    return ", ".join(name for option in _options_at(schema, raw, path) for name in _names(option))


def _quoted(expected: str) -> list[str]:
    """Names out of pydantic's `'a', 'b' or 'c'`."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]
