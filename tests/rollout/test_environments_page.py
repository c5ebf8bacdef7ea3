"""What docs/environments.md shows is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_the_page_runs_from_top_to_bottom() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 7
    found: dict[str, Any] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), found)
    learner = found["learner"]
    assert learner.num_timesteps == 64
    assert sum(p.numel() for p in learner.policy.parameters()) < 200_000, "no weight of a one-hot"
    assert len(found["played"]) == 8
    assert found["over"]
    mask = found["seen"].packed.mask
    assert torch.isfinite(found["advantages"]).all()
    assert not bool(found["returns"][~mask].any())
    scores = torch.tensor(found["scores"], dtype=torch.float64)
    torch.testing.assert_close(found["rewards"].sum(1).double(), scores, rtol=0, atol=1e-4)


def test_the_command_that_trains_in_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (game,) = re.findall(r"```python\n(import gymnasium\n.*?)```", page, re.DOTALL)
    (tmp_path / "guess.py").write_text(game)
    (line,) = re.findall(r"```sh\nplaudit (.*)\n```", page)
    line = line.replace("configs/", f"{PAGE.parents[1] / 'configs'}/")
    small = "model=tiny steps=1 prompts_per_step=2 samples_per_prompt=2 max_new_tokens=4 adapter.blocks=1"
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line), *small.split()]) == 0
    assert (tmp_path / "runs" / "guess" / "summary.json").is_file()
