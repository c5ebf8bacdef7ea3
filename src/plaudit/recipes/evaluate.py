"""Compare models on the same prompts, the first being the baseline; read `run` from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from plaudit import files
from plaudit.config import Config as Base
from plaudit.data.formats import read_prompts
from plaudit.evaluation.evaluate import figures, look, read_looks
from plaudit.models.foreign import Foreign, find_any, load_any
from plaudit.models.load import Model
from plaudit.reward.open import open_for_texts
from plaudit.tensors import SamplingParams
from plaudit.training import machine
from plaudit.training.metrics import Metrics


class Config(Base):
    """Settings of the evaluate recipe; each is described in docs/configs.md."""

    models: list[str] = Field(min_length=1)
    prompts: str
    reward: str | None = None
    n: int = Field(default=4, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
    precision: machine.Precision = "auto"
    threads: int = Field(default=0, ge=0)


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Evaluate in a run directory, from the first model that is not done; returns the summary.

    model: the baseline, where it is in memory already.
    """
    # 1. The baseline, which every model is measured against, the prompts and the scorer. That all models are there is
    # known before the first is asked.
    device, dtype = machine.prepare(config.precision, config.threads)
    places = [find_any(name) for name in config.models]
    baseline = model or load_any(config.models[0], dtype, device)
    prompts = read_prompts(config.prompts)
    scorer = None
    if config.reward is not None:
        near = None if isinstance(baseline, Foreign) else baseline
        scorer = open_for_texts(config.reward, near=near, dtype=dtype, device=device)
    params = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature)

    # 2. Each model in turn; what it said is written before the next begins, and not asked for again.
    path = directory / "samples.jsonl"
    looks = read_looks(path, config.models, len(prompts) * config.n)
    with Metrics(directory, total=len(places), done=len(looks), title="evaluate") as metrics:
        for number in range(len(looks), len(places)):
            name = config.models[number]
            same = places[number] == baseline.directory
            asked = baseline if same else load_any(name, dtype, device)
            rows = look(asked, name, prompts, baseline, scorer, params, n=config.n, seed=config.seed)
            looks.append(rows)
            tokens = sum(len(row["completion_ids"]) for row in rows)
            line = f"{name}: {len(rows)} samples, {tokens} tokens"
            if len(rows) > 1 and len({row["score"] for row in rows} - {None}) == 1:
                line += ", every score is the same"
            metrics.log(number + 1, {"tokens": tokens}, line)
            files.write_rows(path, (row for done in looks for row in done))

    # 3. Figures from the rows alone.
    found = figures(looks, baseline.tokenizer, n=config.n, seed=config.seed)
    summary = {"prompts": len(prompts), "n": config.n, "reward": config.reward, "models": found}
    files.write_json(directory / "summary.json", summary)
    return summary
