"""Samples as rows of a file, and how the starting model sees them."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from plaudit import files
from plaudit.evaluation.perception import Views, look_at
from plaudit.loop.show import Bar
from plaudit.models.adapter import Adapter
from plaudit.models.load import Model, open_adapter
from plaudit.models.q_heads import Steering
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from plaudit.types import Message, Prompt, UserError, prompt_to_json

Row = dict[str, Any]
Prompts = list[Prompt]


def draw(
    model: Model,
    prompts: Sequence[Prompt],
    n: int,
    params: SamplingParams,
    key: tuple[int | str, ...],
    *,
    console: Console,
    version: str | None = None,
    adapter: Path | Adapter | None = None,
    steer: Steering | None = None,
) -> list[Row]:
    """n samples a prompt, in prompt order. version: what the policy is called, with its adapter; "start" where none is
    named."""
    engine = LocalEngine(model.trunk, model.tokenizer, steer=steer)
    if version is not None:
        engine.load(open_adapter(adapter, model.trunk) if isinstance(adapter, Path) else adapter, version)
    ids = [model.tokenizer.render(prompt) for prompt in prompts]
    with Bar(console, "sampling", total=len(prompts) * n) as bar:
        samples = [bar.step(s) for s in engine.sample(ids, n, params, key)]
    return [
        {
            "prompt": prompt_to_json(prompts[s.prompt]),
            "completion": s.text,
            "prompt_ids": list(s.prompt_ids),
            "completion_ids": list(s.completion_ids),
            "logprobs": list(s.logprobs),
            "finish_reason": s.finish_reason,
            "policy_version": s.policy_version,
            "tokenizer": s.tokenizer,
        }
        for s in sorted(samples, key=lambda s: (s.prompt, s.index))
    ]


def views_of(model: Model, rows: Sequence[Row], what: str, *, seed: int, console: Console) -> Views:
    """Views of rows that stand in prompt order, the same number of completions each prompt."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["prompt"]), []).append(row)
    prompts = [group[0]["prompt_ids"] for group in groups.values()]
    completions = [[row["completion_ids"] for row in group] for group in groups.values()]
    with Bar(console, f"looking at {what}", total=0) as bar:
        return look_at(model.trunk, prompts, completions, seed=seed, progress=bar.of)


def openers() -> dict[str, Prompts]:
    """The quickstart's prompts by split, train and heldout."""
    text = importlib.resources.files("plaudit.loop").joinpath("openers.jsonl").read_text(encoding="utf-8")
    found: dict[str, Prompts] = {"train": [], "heldout": []}
    for row in map(json.loads, text.splitlines()):
        found[row["split"]].append((Message("user", row["prompt"]),))
    return found


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    files.write_rows(path, ({"prompt": prompt_to_json(prompt)} for prompt in prompts))


def read_rows(path: Path) -> list[Row]:
    """UserError where the file is missing or broken."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold what else ends a line
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix="start the run again") from None
