"""What docs/environments.md shows is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_the_page_runs_from_top_to_bottom() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    found: dict[str, Any] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), found)
    assert len(found["played"]) == 8
    assert found["over"]
    mask = found["seen"].packed.mask
    assert torch.isfinite(found["advantages"]).all()
    assert not bool(found["returns"][~mask].any())
    scores = torch.tensor(found["scores"], dtype=torch.float64)
    torch.testing.assert_close(found["rewards"].sum(1).double(), scores, rtol=0, atol=1e-4)
