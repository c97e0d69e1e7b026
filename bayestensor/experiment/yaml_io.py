"""Plain YAML: mappings, lists and scalars, nothing that a tag, an alias or a repeated key could smuggle in.

Scalars are read by the YAML 1.2 core rules, not PyYAML's 1.1: `1e-3` is a number, `no` and `12:30` are text.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from bayestensor.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 30

_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+\Z", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    """Refuses what plain data does not need."""

    yaml_implicit_resolvers: ClassVar[dict] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refusal(event, "YAML anchors and aliases are not read; write the value out")
        if event.tag is not None:
            raise _refusal(event, f"YAML tag {event.tag!r} is not read; write plain values")
        if self.depth >= MAX_DEPTH:
            raise _refusal(event, f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal(key, "a key is a single word")
            if key.value in seen:
                raise _refusal(key, f"key {key.value!r} is given twice")
            seen.add(key.value)
        return {str(key.value): self.construct_object(value, deep=True) for key, value in node.value}

    def construct_yaml_int(self, node):
        return int(node.value)  # no octal, no sexagesimal

    def construct_yaml_map(self, node):
        yield self.construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read back as text."""

    yaml_implicit_resolvers: ClassVar[dict] = {}  # type: ignore[misc]

    def ignore_aliases(self, data):
        return True


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _CORE_SCHEMA:
        _class.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


def _refusal(where, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def parse(text: str, source: str) -> Any:
    """The data in a YAML text.

    Raises:
        ConfigError: not YAML, or YAML with tags, anchors, repeated keys, deep nesting or absurd size.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{source}: {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        problem = error.problem or error.context or "not valid YAML"
        raise ConfigError(f"{source}:{line} {_one_line(problem)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_one_line(str(error))}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def dump(data: Any) -> str:
    """YAML that `parse` reads back as equal data; keys in their given order, short lists on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
