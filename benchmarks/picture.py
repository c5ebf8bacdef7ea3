"""A chart of a study as a page that loads nothing and, where there is a Chromium, as a picture of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import plotly.offline

from plaudit import files
from plaudit.evaluation import plots

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def draw(figure: dict[str, Any], page: Path, image: Path, size: tuple[int, int], *, above: str = "") -> None:
    """figure: plotly's data and layout, in the report's colours; size: of the picture, in pixels of a screen; above:
    HTML that stands over the chart."""
    style = (Path(plots.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#\w+)", style.split("@media")[0]))
    paper = "<style>body { margin: 0; background: #ffffff; color: var(--ink); font: 15px/1.5 system-ui, sans-serif }"
    script: str = plotly.offline.get_plotlyjs()
    drawn = json.dumps(figure).replace("<", "\\u003c")
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{page.stem}</title>{paper}</style>{above}"
        f"<script>{script}</script><div id=chart></div><script>const drawn = {drawn};"
        "Plotly.newPlot('chart', drawn.data, drawn.layout, { displayModeBar: false })</script></html>\n"
    )
    body, name, rest = text.partition(script)
    coloured = [re.sub(r"var\((--[\w-]+)\)", lambda found: light[found[1]], part) for part in (body, rest)]
    files.write_text(page, coloured[0] + name + coloured[1])
    browser = next((found for each in BROWSERS if (found := shutil.which(each))), None)
    if browser is None:
        print(f"no Chromium, so no picture; the chart is {page}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as place:
        shot = Path(place) / "shot.png"
        command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={place}/profile",
                   f"--window-size={size[0]},{size[1]}", "--force-device-scale-factor=1.5",
                   "--virtual-time-budget=5000", f"--screenshot={shot}", page.resolve().as_uri()]  # fmt: skip
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        subprocess.run(command, capture_output=True, check=False, timeout=120)
        if not shot.exists():
            print(f"{browser} drew no picture; the chart is {page}", file=sys.stderr)
            return
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(shot, image)
