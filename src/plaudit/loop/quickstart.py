"""The whole way round on a real model: sample, judge, learn a reward, improve, measure, and round again."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console

from plaudit import config as configs
from plaudit import files
from plaudit.config import Config as Base
from plaudit.evaluation.report import write_report
from plaudit.feedback.panel import TRAINING_COLUMNS
from plaudit.feedback.store import Store
from plaudit.loop import drawing, judging, measure, stages
from plaudit.loop.drawing import Prompts, openers
from plaudit.loop.rounds import Journal
from plaudit.loop.stages import Stage
from plaudit.models.load import find_model, load_model
from plaudit.training import machine, rundir
from plaudit.types import UserError


class RewardConfig(Base):
    """The reward model's part; see the reward_model recipe."""

    rank: int = Field(default=16, ge=1)
    blocks: int = Field(default=6, ge=0)
    exit: float = Field(default=0.53, gt=0, le=1)
    learning_rate: float = Field(default=2e-4, ge=0)
    epochs: int = Field(default=1, ge=1)
    prompts_per_step: int = Field(default=8, ge=1)
    rating_weight: float = Field(default=20.0, ge=0)


class PolicyConfig(Base):
    """PPO's part; see the ppo recipe."""

    steps: int = Field(default=6, ge=1)
    prompts_per_step: int = Field(default=16, ge=1)
    samples_per_prompt: int = Field(default=4, ge=1)
    dense_reward: bool = True
    entropy_coef: float = Field(default=0.04, ge=0)
    epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=8e-4, ge=0)
    rank: int = Field(default=16, ge=1)
    blocks: int = Field(default=16, ge=0)
    kl_coef: float = Field(default=0.1, ge=0)
    kl_target: float = Field(default=0.15, gt=0)
    kl_horizon: float = Field(default=500.0, gt=0)
    max_kl: float = 0.28

    @model_validator(mode="after")
    def _horizon_fits(self) -> PolicyConfig:
        if self.kl_horizon <= 0.2 * self.prompts_per_step * self.samples_per_prompt:
            raise ValueError("kl_horizon must be more than a fifth of the samples of a step")
        return self


class Config(Base):
    """Settings of the quickstart; each is described in docs/configs.md."""

    model: str = "smollm2"
    raters: Literal["panel", "me"] = "panel"
    rounds: int = 2
    seed: int = 0
    training_prompts: int = 240
    later_prompts: int = 120
    heldout_prompts: int = 160
    completions: int = 4
    max_new_tokens: int = Field(default=24, ge=1)
    overlap: int = Field(default=3, ge=1, le=len(TRAINING_COLUMNS))
    answers: int = Field(default=40, ge=1)
    blind_answers: int = 20
    reward: RewardConfig = RewardConfig()
    policy: PolicyConfig = PolicyConfig()
    precision: machine.Precision = "auto"
    threads: int = Field(default=0, ge=0)


def command(
    *,
    out: Path,
    model: str = "smollm2",
    raters: str = "panel",
    seed: int = 0,
    rounds: int | None = None,
    overwrite: bool = False,
    threads: int = 0,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """`plaudit quickstart`: begin, go on where a run of the same settings was stopped, or show a finished one."""
    tree: dict[str, Any] = {"model": model, "raters": raters, "seed": seed, "threads": threads}
    tree["rounds"] = rounds if rounds is not None else 1 if raters == "me" else 2
    config = configs.parse(Config, configs.with_overrides(tree, overrides or []), "quickstart")
    if not overwrite and (out / "config.yaml").exists():
        recipe, before = rundir.read_config(out)
        if recipe != "quickstart" or configs.parse(Config, before, str(out / "config.yaml")) != config:
            raise UserError(
                "already holds another run", where=str(out), fix="choose another --out or give --overwrite"
            )
        return resume(out)
    machine.prepare(config.precision, config.threads)
    find_model(config.model)  # a slip in its name costs no run that would be overwritten
    rundir.start(out, "quickstart", config, overwrite=overwrite)
    with rundir.alone(out), rundir.first_try(out):
        return run(config, out)


def resume(directory: Path) -> dict[str, Any]:
    """Go on with a run, or show the summary of a finished one."""
    _, tree = rundir.read_config(directory)
    config = configs.parse(Config, tree, str(directory / "config.yaml"))
    if (summary := rundir.summary(directory)) is not None:
        closing_words(summary, directory, Console(stderr=True))
        return summary
    machine.prepare(config.precision, config.threads)
    with rundir.alone(directory):
        rundir.reopen(directory)
        found = run(config, directory)
        rundir.settle(directory)
        return found


def run(config: Config, directory: Path, ask: Callable[[str], str] = input) -> dict[str, Any]:
    """All rounds, from where the journal ends. ask: reads a line where a person judges at the terminal."""
    console = Console(stderr=True)
    check(config, interactive=ask is not input or sys.stdin.isatty())
    device, dtype = machine.prepare(config.precision, config.threads)
    journal = Journal(directory)

    # 1. The model and the prompts.
    console.print(f"[bold]Loading[/] {config.model}")
    model = load_model(config.model, dtype, device)
    splits = write_prompts(config, directory)

    # 2. Rounds: each transition is recorded and can be killed.
    with Store.open(directory / "feedback.db") as store:
        for number in range(1, config.rounds + 1):
            stage = Stage(config, directory, number, model, store, splits, console, ask)
            take_round(stage, journal)

    # 3. The last round's model is the run's; then the report, and the summary last of all.
    if not (directory / "model").exists():
        with files.new_directory(directory / "model") as place:
            shutil.copytree(
                directory / "rounds" / str(config.rounds) / "ppo" / "model", place, dirs_exist_ok=True
            )
    summary = summarise(config, journal)
    write_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    closing_words(summary, directory, console)
    return summary


def take_round(stage: Stage, journal: Journal, *, last: str = "evaluate") -> None:
    """The round's transitions in order, up to the one named, from where the journal ends. ValueError: no such one."""
    transitions: dict[str, Callable[[Stage], stages.Result]] = {
        "sample": stages.sample,
        "look": stages.look,
        "judge": judging.judge,
        "agree": stages.agree,
        "reward": stages.reward,
        "improve": stages.improve,
        "evaluate": measure.evaluate,
    }
    order = list(transitions)
    for name in order[: order.index(last) + 1]:
        journal.do(stage.number, name, partial(transitions[name], stage))


def check(config: Config, *, interactive: bool) -> None:
    """UserError for settings that cannot work."""
    for name, least in (("rounds", 1), ("training_prompts", 10), ("heldout_prompts", 2), ("completions", 2)):
        if getattr(config, name) < least:
            raise UserError(
                f"{name} is {getattr(config, name)}", where="quickstart", fix=f"give at least {least}"
            )
    if config.raters == "me" and not interactive:
        raise UserError("--raters me asks at a terminal, and there is none", fix="use --raters panel")


def write_prompts(config: Config, directory: Path) -> dict[str, Prompts]:
    """The openers as messages, in prompts/train.jsonl and prompts/heldout.jsonl."""
    splits = openers()
    for split, count in (("train", config.training_prompts), ("heldout", config.heldout_prompts)):
        if count > len(splits[split]):
            name = {"train": "training_prompts", "heldout": "heldout_prompts"}[split]
            raise UserError(
                f"{name} is {count}", where="quickstart", fix=f"give at most {len(splits[split])}"
            )
        splits[split] = splits[split][:count]
        drawing.write_prompts(directory / "prompts" / f"{split}.jsonl", splits[split])
    return splits


def summarise(config: Config, journal: Journal) -> dict[str, Any]:
    """summary.json: the last round's figures at the top, each round's below."""
    rounds = []
    for number in range(1, config.rounds + 1):
        results = {
            step: journal.done(number, step) or {}
            for step in ("judge", "agree", "reward", "improve", "evaluate")
        }
        rounds.append(
            {
                "judgements": results["judge"]["judgements"],
                "agreement": results["agree"],
                "reward_model": results["reward"],
                "ppo": results["improve"],
                "policy": results["evaluate"]["policy"],
                "baselines": results["evaluate"]["baselines"],
            }
        )
    last = rounds[-1]
    return {
        "seed": config.seed,
        "model": config.model,
        "raters": config.raters,
        "seconds": journal.seconds(),
        "peak_rss_gb": round(machine.peak_rss_gb(), 3),
        "judgements": sum(r["judgements"] for r in rounds),
        "agreement": last["agreement"],
        "reward_model": last["reward_model"],
        "policy": last["policy"],
        "baselines": last["baselines"],
        "rounds": rounds,
        "machine": machine.record(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in (
                "plaudit",
                "torch",
                "transformers",
                "tokenizers",
                "safetensors",
                "numpy",
                "sqlalchemy",
            )
        },
    }


def closing_words(summary: dict[str, Any], directory: Path, console: Console) -> None:
    """What came out, and what to do next."""
    policy = summary["policy"]
    if policy.get("win_rate") is not None:
        low, high = policy["win_rate_ci95"]
        console.print(
            f"\n[bold]The improved model wins {policy['win_rate']:.0%}[/] of held-out comparisons "
            f"(95 % interval {low:.0%} to {high:.0%}), KL {policy['kl_per_token']:.2f} nats a token, "
            f"{summary['judgements']} judgements, {summary['seconds']['total'] / 60:.1f} min.",
            soft_wrap=True,
        )
    console.print(f"  read the report      {directory / 'report.html'}", soft_wrap=True)
    prompts = directory / "prompts" / "heldout.jsonl"
    console.print(
        f"  sample from it       plaudit generate {directory / 'model'} --prompts {prompts} --out samples.jsonl",
        highlight=False,
        soft_wrap=True,
    )
    console.print("  judge it yourself    plaudit quickstart --raters me --out runs/mine", highlight=False)
