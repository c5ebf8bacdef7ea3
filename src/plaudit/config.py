"""Configs: strict, at most two levels deep, read from YAML with dotted overrides, dumped as resolved."""

from __future__ import annotations

import copy
import difflib
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from plaudit.types import LARGEST_SCORE, UserError


class Config(BaseModel):
    """Base of every config: unknown keys are refused, types are not coerced, numbers are finite, values stay."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


Score = Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)]
"""A setting that stands for a score."""


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's idea of a float (1e-4 is a number), no dates, and no key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} is set twice", key.start_mark)
            seen.add(str(key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the loader would read as something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.yaml_implicit_resolvers = _Dumper.yaml_implicit_resolvers = {
    key: [(tag, rule) for tag, rule in rules if not tag.endswith((":float", ":timestamp"))]
    for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # into the table that both share
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError when it is missing, broken or not a mapping."""
    try:
        tree = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    if not isinstance(tree, dict):
        raise UserError("holds no settings", where=str(path), fix="write one `key: value` a line")
    return tree


def with_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of the tree with `a.b=value` settings applied; values are read as YAML."""
    out = copy.deepcopy(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        *parents, last = key.split(".")
        if not equals or not all([*parents, last]):
            raise UserError(f"{override!r} is not a setting", where="command line", fix="write key=value")
        node = out
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise UserError(f"{parent!r} has no settings below it", where=override)
        node[last] = _parse_yaml(text, override)
    return out


def leaves(tree: Mapping[str, Any]) -> set[str]:
    """The dotted names of a tree's settings."""
    return {
        name
        for key, value in tree.items()
        for name in (
            {f"{key}.{below}" for below in leaves(value)} if isinstance(value, Mapping) and value else {key}
        )
    }


def parse(cls: type[C], tree: dict[str, Any], where: str) -> C:
    """The tree as a config. UserError names the first fault, its place and the nearest known name."""
    try:
        # By way of JSON, where strictness still lets a list be a tuple and a text be a path.
        return cls.model_validate_json(to_json(tree))
    except ValidationError as error:
        raise UserError(_explain(cls, error), where=where) from None
    except ValueError as error:
        raise UserError(f"holds something that is no setting ({error})", where=where) from None


def load(cls: type[C], path: Path, overrides: list[str] | None = None) -> C:
    """A config from a YAML file and dotted overrides."""
    return parse(cls, with_overrides(read_yaml(path), overrides or []), str(path))


def dump(config: Config) -> str:
    """The resolved config as YAML, every default written out; `load` reads it back to an equal config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (derived from SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{where}:{mark.line + 1}" if mark is not None and "\n" in text else where
        raise UserError(f"is not YAML ({getattr(error, 'problem', error)})", where=where) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not YAML ({error})", where=where) from None


def _explain(cls: type[Config], error: ValidationError) -> str:
    # A misspelt key explains the faults that follow from it, so it is named first; and of the faults of a value that
    # may be of several kinds, that it is not finite says more than that it is no truth value.
    said_first = {"extra_forbidden": 0, "finite_number": 1}
    fault = min(error.errors(), key=lambda e: said_first.get(e["type"], 2))
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {path!r}; {_hint(cls, fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    seen = f", not {value!r}" if isinstance(value, str | int | float) and len(repr(value)) < 60 else ""
    return (f"{path}: " if path else "") + message[:1].lower() + message[1:] + seen


def _hint(cls: type[Config], location: tuple[int | str, ...]) -> str:
    """The nearest name in the same section, else the nearest anywhere, else all that the section knows."""
    *parents, wrong = map(str, location)
    sections = reversed(_sections(cls).items())  # where two know a name, the first has the last word
    section: type[BaseModel] | None = cls
    for part in parents:
        section = _sections(section).get(part) if section else None
    here = {name: ".".join([*parents, name]) for name in (section.model_fields if section else ())}
    anywhere = {name: f"{at}.{name}" for at, model in sections for name in model.model_fields}
    anywhere |= {name: name for name in cls.model_fields}
    for names in (here, anywhere):
        near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
        if near:
            return f"did you mean {names[near[0]]!r}?"
    return f"known here: {', '.join(sorted(here or anywhere))}"


def _sections(cls: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields that hold a config of their own."""
    found = {}
    for name, field in cls.model_fields.items():
        for option in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                found[name] = option
    return found
