"""Every public function of the algorithms has its place in docs/algorithms.md, and a source in its docstring."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plaudit.algorithms

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
MODULES = [
    importlib.import_module(f"plaudit.algorithms.{module.name}")
    for module in pkgutil.iter_modules(plaudit.algorithms.__path__)
]
FUNCTIONS = [
    function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]


def test_the_list_is_not_empty() -> None:
    assert len(MODULES) >= 8
    assert len(FUNCTIONS) >= 19


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_function_is_on_the_page(function: Callable[..., Any]) -> None:
    assert f"`{function.__name__}(" in PAGE
    assert function.__doc__


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_settings_on_the_page_are_those_of_the_code(function: Callable[..., Any]) -> None:
    """Where the page shows a default, it is the function's."""
    shown = PAGE.split(f"`{function.__name__}(", 1)[1].split(")`", 1)[0]
    parameters = inspect.signature(function).parameters
    for part in shown.replace("*,", "").split(","):
        name, _, default = part.strip().lstrip("*").partition("=")
        assert name in parameters, f"{function.__name__} has no {name}"
        if default:
            assert eval(default, {}) == parameters[name].default, f"{function.__name__}: {part}"
