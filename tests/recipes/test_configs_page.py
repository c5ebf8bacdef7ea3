"""docs/configs.md says what the code does: every setting stands in its recipe's table, with its default."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from plaudit import config as configs
from plaudit.cli import RECIPES
from plaudit.reward.open import KINDS, Term
from plaudit.reward.transform import TRANSFORMS, parameters
from plaudit.training import machine
from plaudit.training.online import OnlineConfig

PAGE = Path(__file__).parents[2] / "docs" / "configs.md"
CONFIGS = PAGE.parents[1] / "configs"
SAMPLES = "In every recipe that learns from its own samples"


def tables() -> dict[str, dict[str, str]]:
    """Per section of the page: each setting and what the column of defaults says."""
    found: dict[str, dict[str, str]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("| `")]
        cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
        found[section.partition("\n")[0]] = {row[0].strip("`"): row[3] for row in cells}
    return found


def defaults(cls: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.default, BaseModel):
            given = field.default.model_dump()
            found |= {key: given[key.split(".")[1]] for key in defaults(type(field.default), f"{name}.")}
        else:
            found[prefix + name] = field.default
    return found


def said(default: Any) -> str:
    """A default as the page writes it."""
    if default is PydanticUndefined:
        return "*needed*"
    if isinstance(default, str | list | dict):
        return f"`{default}`"
    return {"None": "none", "True": "true", "False": "false"}.get(str(default), str(default))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_stands_in_its_table_with_its_default(recipe: str) -> None:
    everywhere, own = tables()["In every recipe"], tables()[recipe]
    cls = importlib.import_module(RECIPES[recipe]).Config
    found = defaults(cls)
    if issubclass(cls, OnlineConfig):
        everywhere |= tables()[SAMPLES]
    for name, default in found.items():
        text = own.get(name, everywhere.get(name, "it is in no table"))
        if name == "checkpoint_every":
            assert str(default) in re.findall(r"\d+", text)
        elif isinstance(default, float):
            assert (name, float(text)) == (name, default)
        else:
            assert (name, text) == (name, said(default))
    assert not own.keys() - found.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_scorer_stands_in_its_table_with_its_default(kind: str) -> None:
    everywhere, own = tables()["Scorers"], tables()[f"Scorer: {kind}"]
    found = defaults(KINDS[kind])
    for name, default in found.items():
        text = own.get(name, everywhere.get(name, "it is in no table"))
        if isinstance(default, float):
            assert (name, float(text)) == (name, default)
        else:
            assert (name, text) == (name, said(default))
    of_a_term = {f"terms.{name}" for name in defaults(Term)} if kind == "sum" else set()
    assert own.keys() - found.keys() == of_a_term


def test_every_transform_stands_in_its_table_with_what_it_takes() -> None:
    table = tables()["Transforms"]
    assert table.keys() == set(TRANSFORMS)
    for name, takes in table.items():
        known, needed = parameters(name)
        given = dict(part.split(" ") for part in takes.replace("`", "").split(", ") if part != "nothing")
        assert given.keys() == known
        assert {setting for setting, default in given.items() if default == "*needed*"} == needed


@pytest.mark.parametrize("kind", ["ensemble", "judge", "sum", "rule", "answers"])
def test_the_scorer_to_begin_with_writes_every_setting_out(kind: str) -> None:
    tree = configs.read_yaml(CONFIGS / "scorers" / f"{kind}.yaml")
    assert tree.pop("kind") == kind
    assert yaml.safe_load(configs.dump(configs.parse(KINDS[kind], tree, kind))) == tree
    given = {
        name: default for name, default in defaults(KINDS[kind]).items() if default is not PydanticUndefined
    }
    example = {"combine", "base_url", "api_key_env", "protocol", "options", "after"}
    assert {name: tree[name] for name in given.keys() - example} == {
        name: default for name, default in given.items() if name not in example
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_config_to_begin_with_writes_every_setting_out(recipe: str) -> None:
    """And with the code's defaults, where there is one."""
    cls = importlib.import_module(RECIPES[recipe]).Config
    tree = configs.read_yaml(CONFIGS / f"{recipe}.yaml")
    assert tree.pop("recipe") == recipe
    whole = yaml.safe_load(configs.dump(configs.parse(cls, tree, recipe)))
    # Its 0 becomes a number, by the config's own precision.
    by_machine = {"micro_batch_tokens": whole["micro_batch_tokens"]} if "micro_batch_tokens" in tree else {}
    assert whole == tree | by_machine
    given = {name: default for name, default in defaults(cls).items() if default is not PydanticUndefined}
    for name, default in given.items():
        section, _, last = name.rpartition(".")
        if name not in ("prompts", "reward"):  # the examples have some
            assert ((tree[section] if section else tree)[last]) == default, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_micro_batches_follow_the_configs_own_precision(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = importlib.import_module(RECIPES[recipe]).Config
    tree = configs.read_yaml(CONFIGS / f"{recipe}.yaml")
    tree.pop("recipe")
    if "micro_batch_tokens" not in tree:
        return
    monkeypatch.setattr(machine, "fast_bfloat16", lambda: True)
    sizes = [
        configs.parse(cls, tree | {"precision": p}, recipe).micro_batch_tokens for p in ("auto", "float32")
    ]
    assert sizes == [4096, 1024]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_section_of_which_one_setting_is_given_keeps_the_others_defaults(recipe: str) -> None:
    cls = importlib.import_module(RECIPES[recipe]).Config
    whole = configs.read_yaml(CONFIGS / f"{recipe}.yaml")
    needed = {
        name: whole[name] for name, field in cls.model_fields.items() if name in ("prompts", "reward")
        or field.default is PydanticUndefined
    }  # fmt: skip
    plain = configs.parse(cls, needed, recipe)
    for section, field in cls.model_fields.items():
        if isinstance(field.default, BaseModel):
            for name, value in getattr(plain, section).model_dump().items():
                assert configs.parse(cls, needed | {section: {name: value}}, recipe) == plain, (section, name)
