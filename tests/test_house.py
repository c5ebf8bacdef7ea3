"""The house's rules that no linter knows: imports, configs, documentation, and what may never be loaded."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

import plaudit
from plaudit import config

SRC = Path(plaudit.__file__).parent
ROOT = Path(__file__).parents[1]
SCRIPTS = {"plaudit.feedback.migrations.env"}
"""Run by Alembic inside a migration; they cannot be imported by themselves."""


def module_name(file: Path) -> str:
    parts = file.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted({module_name(file) for file in SRC.rglob("*.py")} - SCRIPTS)
TORCH_FREE = (
    "types", "config", "files", "randomness", "phases", "data.formats", "feedback", "access", "studio"
)  # fmt: skip
TODAY = ("types", "config", "files", "randomness", "phases", "data.formats", "feedback")
"""Of the torch-free rooms, those that must stand in this release; access and studio join when they are built."""


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_torch_free_rooms_stay_torch_free() -> None:
    rooms = tuple(f"plaudit.{room}" for room in TORCH_FREE)
    modules = [name for name in MODULES if f"{name}.".startswith(tuple(f"{room}." for room in rooms))]
    assert {f"plaudit.{room}" for room in TODAY} <= set(modules)
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    heavy = sorted({{"torch", "transformers", "datasets"}} & set(sys.modules))
    assert not heavy, f"{{name}} imports {{', '.join(heavy)}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def recipes() -> dict[str, type[config.Config]]:
    """Each recipe's name and its Config."""
    names = [file.stem for file in (SRC / "recipes").glob("*.py") if not file.stem.startswith("_")]
    assert {"sft", "reward_model", "ppo", "ilql", "bandit"} <= set(names)
    found = {}
    for name in names:
        cls = importlib.import_module(f"plaudit.recipes.{name}").Config
        assert issubclass(cls, config.Config), f"{name}.Config is no plaudit.config.Config"
        found[name] = cls
    return found


def test_every_yaml_parses_and_every_recipe_has_one() -> None:
    known, used = recipes(), set[str]()
    for path in sorted((ROOT / "configs").rglob("*.y*ml")):
        if path.parent.name == "scorers":  # they describe a reward: the test below reads them
            continue
        assert path.suffix == ".yaml", f"{path.name} should end in .yaml"
        tree = config.read_yaml(path)
        if tree.get("recipe") == "loop":
            del tree["recipe"]
            config.parse(loop(), tree, str(path))
            continue
        assert tree.get("recipe") in known, f"{path.name} names no recipe"
        used.add(str(tree["recipe"]))
        cls = known[tree["recipe"]]
        if "recipe" not in cls.model_fields:
            del tree["recipe"]
        config.parse(cls, tree, str(path))
    assert used == set(known)


def test_every_scorer_parses_and_every_kind_has_one() -> None:
    opened = importlib.import_module("plaudit.reward.open")
    found = set()
    for path in sorted((ROOT / "configs" / "scorers").iterdir()):
        assert path.suffix == ".yaml", f"{path.name} should end in .yaml"
        found.add(type(opened.read_description(str(path))))
    assert found == set(opened.KINDS.values())


def settings(cls: type[BaseModel]) -> Iterator[str]:
    for name, section in config._sections(cls).items():
        yield from (f"{name}.{setting}" for setting in settings(section))
    yield from cls.model_fields


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    missing = [
        f"{recipe}: {setting}"
        for recipe, cls in recipes().items()
        for setting in settings(cls)
        if f"`{setting}`" not in text and f"`{setting.rpartition('.')[2]}`" not in text
    ]
    assert not missing


def loop() -> type[config.Config]:
    found: type[config.Config] = importlib.import_module("plaudit.loop.settings").Config
    return found


def test_every_setting_of_a_loop_is_documented() -> None:
    text = (ROOT / "docs" / "loop.md").read_text(encoding="utf-8")
    sections = {"sources", "collect", "reward", "policy", "gate", "stop", "suites"}
    wanted = set(settings(loop())) - sections
    assert len(wanted) > 50
    assert [
        name for name in wanted if f"`{name}`" not in text and f"`{name.split('.')[-1]}`" not in text
    ] == []


def test_every_setting_of_a_server_is_documented() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    served = importlib.import_module("plaudit.serving.run").Config
    assert [name for name in settings(served) if f"`{name}`" not in text] == []


def test_every_route_of_a_server_is_documented() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    rooms = ("chat", "opinions", "health")
    routers = [importlib.import_module(f"plaudit.serving.{room}").router for room in rooms]
    paths = {route.path.replace("{name:path}", "NAME") for router in routers for route in router.routes}
    assert len(paths) == 10
    assert [path for path in paths if f"`{path}`" not in text and f" {path}`" not in text] == []


def commands(command: Any, path: str) -> Iterator[str]:
    """The path of each command: "plaudit train", "plaudit feedback import"."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path
    for name, child in (below or {}).items():
        yield from commands(child, f"{path} {name}")


def test_every_command_is_documented() -> None:
    app = importlib.import_module("plaudit.cli").app
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    found = list(commands(typer.main.get_command(app), "plaudit"))
    assert len(found) > 1
    missing = [path for path in found if not re.search(rf"`{re.escape(path)}\b", text)]
    assert not missing


def test_every_page_is_listed_and_every_link_leads_somewhere() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not dead


def dangers(source: str) -> set[str]:
    """What the source loads that could run a stranger's code, or spreads over machines; prose is not read."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.add(node.arg)
        elif isinstance(node, ast.Constant) and node.value in ("trust_remote_code", "allow_pickle"):
            found.add(node.value)  # as a key of keyword arguments
    roots = {name.partition(".")[0] for name in found}
    return (roots & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}) | (
        {"torch.load", "trust_remote_code", "allow_pickle"} & found
        | {"torch.distributed" for name in found if f"{name}.".startswith("torch.distributed.")}
    )


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("import torch\ntorch.load(p, weights_only=True)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("f(trust_remote_code=True)", "trust_remote_code"),
        ("f(trust_remote_code=flag)", "trust_remote_code"),
        ("f(**{'trust_remote_code': True})", "trust_remote_code"),
        ("np.load(p, allow_pickle=True)", "allow_pickle"),
        ("import torch.distributed as dist", "torch.distributed"),
        ("from torch import distributed", "torch.distributed"),
        ("from torch.distributed.fsdp import fully_shard", "torch.distributed"),
        ("torch.distributed.barrier()", "torch.distributed"),
    ],
)
def test_the_search_for_dangers_finds(source: str, danger: str) -> None:
    assert dangers(source) == {danger}


def test_the_search_for_dangers_leaves_the_rest_alone() -> None:
    assert not dangers(
        "'''No pickle, no torch.load.'''\nfrom safetensors import load\nf(trust_remote_code=False)"
    )


def test_nothing_pickled_or_remote_is_loaded_and_distribution_has_one_home() -> None:
    found = {
        str(path.relative_to(SRC)): dangers(path.read_text(encoding="utf-8")) for path in SRC.rglob("*.py")
    }
    home = str(Path("training", "distributed.py"))
    found[home] = found.get(home, set()) - {"torch.distributed"}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_in_ci_a_skipped_test_is_a_failure(tmp_path: Path, ci: str, status: int, workers: str) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "def test_fine(): pass\n"
        "def test_absent(): pytest.skip('no data')\n"
        "@pytest.mark.skipif(True, reason='platform: needs another')\ndef test_elsewhere(): pass\n"
        "@pytest.mark.skip(reason='later')\ndef test_later(): pass\n"
        "@pytest.mark.parametrize('a', [])\ndef test_nothing(a): pass\n"
    )
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    asked = ["-q", "-ra", "-p", "no:cacheprovider", "-n", workers, "--continue-on-collection-errors"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *asked, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
    )
    assert done.returncode == status, done.stdout + done.stderr
    for name in ("test_absent", "test_later", "test_nothing", "test_two.py"):
        assert bool(re.search(rf"{name}\S* was skipped in CI", done.stdout)) == bool(ci), done.stdout
    assert not re.search(r"test_(elsewhere|fine)\S* was skipped in CI", done.stdout)


def test_in_ci_a_difference_is_told_shortly(tmp_path: Path) -> None:
    """pytest itself would write out what differs of two models' bytes, for hours."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert bytes(2000) == bytes(1999) + b'1'\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "CI": "true"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Use -v to get more diff" in done.stdout
