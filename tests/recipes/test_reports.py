"""Every recipe that learns from given data leaves report.html, in which each figure that it logs has its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_splits import OFFLINE, settings

from plaudit.evaluation.run_report import GIVEN, given_curves
from plaudit.training import rundir
from runs import changed, rows

CASES = {name: OFFLINE[name] for name in OFFLINE if name not in ("sft, dropout", "dpo, simpo")}


@pytest.mark.parametrize("name", CASES)
def test_a_run_leaves_a_page_with_every_figure_that_it_logs(name: str, tmp_path: Path) -> None:
    recipe, config = settings(name, tmp_path)
    recipe_name = name.partition(", ")[0]
    config = changed(config, heldout=0.3, l1=1e-6) if name == "sft" else changed(config, heldout=0.3)
    rundir.start(tmp_path / "run", recipe_name, config)
    summary = recipe.run(config, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    logged = rows(tmp_path / "run")
    titles = {key: title for key, title, _, _ in given_curves(logged)}
    for figure in {key for row in logged for key, value in row.items() if value is not None} - {"step"}:
        assert f'<th scope="col">{titles[figure]}</th>' in page, figure
    said = re.sub(r"<(script|style)\b.*?</\1>|<pre>.*?</pre>", "", page, flags=re.S)
    assert not re.search(r"\b(samples?|sampler|completions? that end|EOS|entropy)\b", said, re.I)
    assert f"Plaudit run · {recipe_name}" in page
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_every_recipe_of_given_data_is_held_to_it() -> None:
    """But for the loop's online mode, which tests/loop/test_loop_online.py holds to it."""
    assert {name.partition(", ")[0] for name in CASES} == set(GIVEN) - {"online"}
