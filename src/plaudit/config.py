"""Configs: strict, at most two levels deep, read from YAML with dotted overrides, dumped as resolved."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from plaudit.types import UserError


class Config(BaseModel):
    """Base of every config: unknown keys are refused, types are not coerced, values cannot change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a float, so that 1e-4 is a number and not a text."""


_Loader.yaml_implicit_resolvers = {
    key: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:float"]
    for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError when it is missing, broken or not a mapping."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (derived from SafeLoader)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"is not YAML ({getattr(error, 'problem', error)})", where=where) from None
    if not isinstance(tree, dict):
        raise UserError("holds no settings", where=str(path), fix="write one `key: value` a line")
    return tree


def with_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of the tree with `a.b=value` settings applied; values are read as YAML."""
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not a setting", where="command line", fix="write key=value")
        *parents, last = key.split(".")
        node = out
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise UserError(f"{parent!r} has no settings below it", where=override)
            node = child
        node[last] = yaml.load(text, Loader=_Loader)  # noqa: S506
    return out


def parse(cls: type[C], tree: dict[str, Any], where: str) -> C:
    """The tree as a config. UserError names the first fault, its place and the nearest known name."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise UserError(*_explain(cls, error), where=where) from None


def load(cls: type[C], path: Path, overrides: list[str] | None = None) -> C:
    """A config from a YAML file and dotted overrides."""
    return parse(cls, with_overrides(read_yaml(path), overrides or []), str(path))


def dump(config: Config) -> str:
    """The resolved config as YAML, every default written out; `load` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(cls: type[Config], error: ValidationError) -> tuple[str]:
    # A misspelt key explains the faults that follow from it, so it is named first.
    fault = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return (f"{path}: {fault['msg'][:1].lower()}{fault['msg'][1:]}",)
    fields = _fields_at(cls, fault["loc"][:-1])
    near = difflib.get_close_matches(str(fault["loc"][-1]), fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(fields))}"
    return (f"unknown setting {path!r}; {hint}",)


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = cls.model_fields[str(part)].annotation if str(part) in cls.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not models:
            return []
        cls = models[0]
    return list(cls.model_fields)
