"""What tests of recipes share: their prompts, what a run has left behind, and kills between its steps."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit import cli
from plaudit import config as configs
from plaudit.data.collate import pack
from plaudit.models import tiny
from plaudit.models.branch import Pool
from plaudit.models.load import find_model, load_model
from plaudit.reward.model import RewardModel
from plaudit.rollout.collect import Forward
from plaudit.rollout.generate import generate
from plaudit.tensors import Sample, SamplingParams
from plaudit.training import checkpoint, learner
from plaudit.training.metrics import Metrics
from plaudit.training.optim import take_step
from tiny_models import as_samples, random_branch

TIMES = ("seconds", "seconds_sampling", "tokens_per_second")
PROMPTS = ["good morning", "what is your name", "tell me more", "I am tired", "coffee or tea"]

Row = dict[str, float]
Kill = Callable[[pytest.MonkeyPatch, int, ModuleType], None]


def rows(directory: Path) -> list[Row]:
    """The logged steps, without what the clock says."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def same(a: list[Row], b: list[Row], tolerance: float) -> None:
    assert [row.keys() for row in a] == [row.keys() for row in b]
    for one, two in zip(a, b, strict=True):
        for name in one:
            assert one[name] == pytest.approx(two[name], rel=tolerance, abs=tolerance), (one["step"], name)


@contextlib.contextmanager
def held_to(recorded: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Each step that a recipe logs in here is held against what was recorded; the first that differs ends the run."""
    log = Metrics.log

    def hold(self: Metrics, step: int, values: Mapping[str, float], shown: str) -> None:
        for name, number in recorded[step - 1].items():
            assert values.get(name) == pytest.approx(number, rel=1e-9, abs=1e-9), (step, name)
        log(self, step, values, shown)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "log", hold)
        yield


def weights(directory: Path) -> dict[str, bytes]:
    found = sorted(directory.glob("adapter/*.safetensors")) + sorted(directory.glob("model/*.safetensors"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def reward_model(directory: Path, *, blocks: int, pool: Pool = "last", model_name: str = "tiny") -> str:
    model = load_model(model_name, torch.float64)
    branch = random_branch(model.trunk, blocks=blocks, seed=9)
    branch.pool = pool
    RewardModel(branch, model).save(directory, {})
    return str(directory)


def write_prompts(directory: Path) -> str:
    path = directory / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return str(path)


def peaked_model(directory: Path) -> str:
    """The tiny model with six times its last norm: sure enough of itself that there is something to learn."""
    place = Path(shutil.copytree(find_model("tiny"), directory / "peaked"))
    tensors = load_file(place / "model.safetensors")
    tensors["model.norm.weight"] *= 6
    save_file(tensors, place / "model.safetensors")
    return str(place)


def foreign_model(directory: Path) -> str:
    """Another tiny model, whose tokenizer knows fewer merges and counts its tokens from the end."""
    place = tiny.make(directory, seed=1)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    inner, special = tokenizer["model"], len(tiny.SPECIAL)
    inner["merges"] = inner["merges"][:100]
    last = len(inner["vocab"]) - 1 + special
    inner["vocab"] = {word: i if i < special else last - i for word, i in inner["vocab"].items()}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(place)


class Killed(BaseException):
    """What no handler of a recipe's may swallow."""


def before_it_is_logged(monkeypatch: pytest.MonkeyPatch, at: int, _: ModuleType) -> None:
    log = Metrics.log

    def kill(self: Metrics, step: int, *args: Any) -> None:
        if step == at:
            raise Killed
        log(self, step, *args)

    monkeypatch.setattr(Metrics, "log", kill)


def after_it_is_logged(monkeypatch: pytest.MonkeyPatch, at: int, _: ModuleType) -> None:
    log = Metrics.log

    def kill(self: Metrics, step: int, *args: Any) -> None:
        log(self, step, *args)
        if step == at:
            raise Killed

    monkeypatch.setattr(Metrics, "log", kill)


def within_the_log_line(monkeypatch: pytest.MonkeyPatch, at: int, _: ModuleType) -> None:
    log = Metrics.log

    def kill(self: Metrics, step: int, *args: Any) -> None:
        log(self, step, *args)
        if step == at:
            text = self.path.read_text()
            self.path.write_text(text[:-40])
            raise Killed

    monkeypatch.setattr(Metrics, "log", kill)


def before_it_is_saved(monkeypatch: pytest.MonkeyPatch, at: int, _: ModuleType) -> None:
    save = checkpoint.save

    def kill(directory: Path, step: int, *args: Any, **kwargs: Any) -> None:
        if step >= at:
            raise Killed
        save(directory, step, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", kill)


def after_it_is_saved(monkeypatch: pytest.MonkeyPatch, at: int, _: ModuleType) -> None:
    save = checkpoint.save

    def kill(directory: Path, step: int, *args: Any, **kwargs: Any) -> None:
        save(directory, step, *args, **kwargs)
        if step >= at:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", kill)


def within_the_update(monkeypatch: pytest.MonkeyPatch, at: int, _: ModuleType) -> None:
    """Before the last of two epochs' optimiser steps."""
    step, calls = take_step, [0]

    def kill(*args: Any, **kwargs: Any) -> float:
        calls[0] += 1
        if calls[0] == 2 * at:
            raise Killed
        return step(*args, **kwargs)

    monkeypatch.setattr(learner, "take_step", kill)


def within_the_export(monkeypatch: pytest.MonkeyPatch, at: int, recipe: ModuleType) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    assert at
    monkeypatch.setattr(recipe, "write_policy", kill)


KILLS: list[Kill] = [
    before_it_is_logged, after_it_is_logged, within_the_log_line, before_it_is_saved, after_it_is_saved,
    within_the_update, within_the_export,
]  # fmt: skip


CONFIGS = Path(__file__).parents[1] / "configs"
ONLINE = (
    "ppo", "reinforce", "rloo", "reinforce_plus_plus", "grpo", "dr_grpo", "dapo", "gspo", "rejection", "online_dpo",
)  # fmt: skip
"""The shipped configs of recipes that learn from their own samples."""


def shipped_recipe(name: str) -> ModuleType:
    return importlib.import_module(f"plaudit.recipes.{configs.read_yaml(CONFIGS / f'{name}.yaml')['recipe']}")


def shipped(name: str, **settings: Any) -> tuple[ModuleType, Any]:
    """The recipe of configs/NAME.yaml, and that config with these settings changed (a section's by its names)."""
    recipe, tree = shipped_recipe(name), configs.read_yaml(CONFIGS / f"{name}.yaml")
    del tree["recipe"]
    for key, value in settings.items():
        if key in recipe.Config.model_fields:
            tree[key] = tree[key] | value if isinstance(value, dict) else value
    return recipe, configs.parse(recipe.Config, tree, name)


SPLITS: dict[str, dict[str, int]] = {"default": {}, "single": {"micro_batch_tokens": 1}}
"""Of a batch: as the settings have it, and one row at a time."""
EACH_SPLIT = ["default", pytest.param("single", marks=pytest.mark.proof)]
"""Whole trajectories take long, and the laws hold every split for some steps in any case."""


def by_command(name: str, settings: Mapping[str, Any], directory: Path) -> list[Row]:
    """The logged steps of `plaudit train configs/NAME.yaml KEY=VALUE... --out DIRECTORY`, a section's settings by their
    names; those that the recipe does not have are left out. What the command would explain in a line is raised."""

    def told(error: BaseException) -> tuple[int, str]:
        raise error

    fields = shipped_recipe(name).Config.model_fields
    words = [
        f"{key}.{part}={json.dumps(of_part)}" if part else f"{key}={json.dumps(of_part)}"
        for key, value in settings.items()
        if key in fields
        for part, of_part in (value.items() if isinstance(value, dict) else [("", value)])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_explained", told)
        assert cli.main(["train", str(CONFIGS / f"{name}.yaml"), *words, "--out", str(directory)]) == 0
    return rows(directory)


def changed(config: Any, **settings: Any) -> Any:
    """The config with these settings; a section's are changed by their names."""
    tree = config.model_dump()
    for key, value in settings.items():
        tree[key] = tree[key] | value if isinstance(value, dict) else value
    return type(config).model_validate(tree)


def judged(directory: Path, *, model: str = "tiny", n: int = 3, seed: int = 0) -> dict[str, list[str]]:
    """The settings `feedback` and `samples`: n completions of each prompt as the model drew them, each rated by the
    share of its ids that four divides, and one that nobody drew."""
    params = SamplingParams(max_new_tokens=6)
    drawn, ratings = directory / "drawn.jsonl", directory / "ratings.jsonl"
    generate(model, Path(write_prompts(directory)), drawn, params, n=n, seed=seed, dtype=torch.float64)
    found = [json.loads(line) for line in drawn.read_text().splitlines()]
    text = " good morning to you"
    ids = load_model("tiny", torch.float64).tokenizer.complete(text)
    lines = []
    for row in (*found, {"prompt": PROMPTS[0], "completion": text, "completion_ids": ids}):
        share = sum(i % 4 == 0 for i in row["completion_ids"]) / len(row["completion_ids"])
        lines.append({"prompt": row["prompt"], "completion": row["completion"], "scores": {"overall": share}})
    ratings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"feedback": [str(ratings)], "samples": [str(drawn)]}


def made_up(
    kl: list[list[float]],
    *,
    prompts: Sequence[int],
    logprob: float = -2.0,
    ended: Sequence[bool] | None = None,
) -> tuple[Forward, list[Sample]]:
    """A rollout with this k1 (nats) at each token: kl[i] are sample i's, prompts[i] the number of its prompt."""
    longest = [False] * len(kl) if ended is None else ended
    completions = [
        [7 + i] * (len(row) - 1) + [1 if stop else 6]
        for i, (row, stop) in enumerate(zip(kl, longest, strict=True))
    ]
    samples = [
        replace(sample, prompt=prompt)
        for sample, prompt in zip(as_samples([[4, p] for p in prompts], completions), prompts, strict=True)
    ]
    packed = pack([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    blank = torch.zeros(packed.mask.shape, dtype=torch.float64)
    now = blank + logprob * packed.mask
    moved = blank.masked_scatter(
        packed.mask, torch.tensor([x for row in kl for x in row], dtype=torch.float64)
    )
    return Forward(packed, {}, now, now - moved, now, blank, blank, None), samples
