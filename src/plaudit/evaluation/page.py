"""A page that opens from disk: a template, figures that its script draws, and the filters that keep text text.

All that a run holds is untrusted: a model wrote it, or a person. A page escapes it, runs no script but its own two,
and can load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plaudit import __version__
from plaudit.evaluation import plots
from plaudit.evaluation.plots import Figure
from plaudit.types import UserError


def fill(template: str, content: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    """A template of this package with everything in its place; only the page's own two scripts are allowed to run."""
    scripts = [_plotly(), _own("report.js")]
    page = (
        _environment()
        .get_template(template)
        .render(
            content,
            version=__version__,
            figures=figures,
            data=Markup(embedded(figures)),
            plotly=Markup(scripts[0]),
            script=Markup(scripts[1]),
            style=Markup(_own("report.css")),
            hashes=" ".join(map(_hash, scripts)),
        )
    )
    return page.encode("utf-8", "replace").decode()  # half a surrogate pair is no character


@cache
def _environment() -> Environment:
    """Kept, since a template takes longer to compile than to fill."""
    environment = Environment(
        loader=PackageLoader("plaudit.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "pct": pct, "num": num, "plain": plain, "said": said, "number": number, "interval": interval, "yaml": yaml
    }  # fmt: skip
    environment.globals |= {"dig": dig, "colour": plots.colour}
    return environment


@cache
def _plotly() -> str:
    return _inline(importlib.resources.files("plotly") / "package_data" / "plotly.min.js")


@cache
def _own(name: str) -> str:
    return _inline(importlib.resources.files("plaudit.evaluation") / "templates" / name)


def _inline(file: Traversable) -> str:
    """A file's text, which may stand inside a script element: nothing in it can end the element."""
    return file.read_text("utf-8").replace("\r\n", "\n").replace("</script", "<\\/script")


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def pct(value: Any, digits: int = 0) -> str | Markup:
    """0.6234 -> 62 %, with the number itself beside for machines."""
    found = number(value)
    return "–" if found is None else _data(found, f"{100 * found:.{digits}f}\u202f%")


def num(value: Any, digits: int = 2) -> str | Markup:
    """1234.5 -> 1,234.50."""
    found = number(value)
    if found is None:
        return "–"
    text = f"{found:,.{digits}f}"
    zero = text.strip("-0.,") == ""
    return _data(found, (text.lstrip("-") if zero else text).replace("-", "−"))


def _data(value: float, text: str) -> Markup:
    return Markup('<data value="{}">{}</data>').format(repr(value), text)


def plain(text: Any) -> str:
    """Text of a model or a person, its control characters made visible, since some are no HTML."""
    return "".join(_visible(character) for character in str(text))


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    if unicodedata.category(character) == "Cf" and character in "\u200c\u200d":
        return character  # joiners, which scripts and emoji need
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def said(prompt: Any) -> str:
    """A prompt, which is text or messages, as text."""
    if isinstance(prompt, str):
        return plain(prompt)
    return "\n".join(plain(dig(message, "content") or "") for message in prompt or [])


def yaml(tree: Mapping[str, Any]) -> str:
    """Names and values, one a line."""
    return "\n".join(f"{plain(name)}: {plain(value)}" for name, value in tree.items())


def dig(tree: Any, *keys: str) -> Any:
    """tree[a][b]..., None where a part of the way is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def number(value: Any) -> float | None:
    """A finite number, else None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if plain else None


def interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = (number(bound) for bound in value)
    return None if low is None or high is None else (low, high)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path)) from None


def read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=str(path)) from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
    except ValueError as error:
        raise UserError(f"is not JSON lines ({error})", where=str(path)) from None
