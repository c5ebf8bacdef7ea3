"""The transitions of one round, in order: sample, look, (judging.py: judge), agree, reward, improve, (measure.py:
evaluate).

Each reads files of the transitions before it and writes its own below rounds/N; its result is what the journal
keeps. Each may be killed and taken again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from plaudit import files
from plaudit.evaluation.perception import Band, Views
from plaudit.feedback import agreement, transfer
from plaudit.feedback.store import Store
from plaudit.loop import drawing
from plaudit.loop.drawing import Prompts, read_rows
from plaudit.loop.rounds import Journal
from plaudit.models.load import Model
from plaudit.models.q_heads import Steering
from plaudit.randomness import rng
from plaudit.recipes import ppo, reward_model
from plaudit.tensors import SamplingParams
from plaudit.training import online, rundir
from plaudit.types import prompt_to_json

if TYPE_CHECKING:
    from plaudit.loop.quickstart import Config

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """What every transition of a round is given."""

    config: Config
    directory: Path
    number: int
    model: Model
    store: Store
    splits: dict[str, Prompts]
    console: Console
    ask: Callable[[str], str]

    @property
    def place(self) -> Path:
        return self.directory / "rounds" / str(self.number)

    @property
    def prompts(self) -> Prompts:
        """The training prompts that the round samples: all in the first, a drawn part in later ones; for a person,
        who judges `answers` pairs, half as many pairs again."""
        config, every = self.config, self.splits["train"]
        count = len(every) if self.number == 1 else min(len(every), config.later_prompts)
        if config.raters == "me":
            count = min(count, math.ceil(1.5 * config.answers / (config.completions // 2)))
        drawn = rng(config.seed, "round prompts", self.number).permutation(len(every))[:count]
        return [every[i] for i in sorted(drawn)]

    @property
    def parent_adapter(self) -> Path | None:
        """The adapter of the policy that this round begins with; None is the starting model."""
        return (
            None if self.number == 1 else self.directory / "rounds" / str(self.number - 1) / "ppo" / "adapter"
        )

    def say(self, text: str) -> None:
        self.console.print(f"[bold]Round {self.number}[/] {text}", highlight=False, soft_wrap=True)


# 1. sample -------------------------------------------------------------------------------------------------


def sample(stage: Stage) -> Result:
    """n completions of each training prompt from the policy that the round begins with -> samples.jsonl."""
    config, prompts = stage.config, stage.prompts
    stage.say(f"sampling {config.completions} completions of {len(prompts)} prompts")
    rows = draw(stage, prompts, config.completions, "sample", adapter=stage.parent_adapter)
    files.write_rows(stage.place / "samples.jsonl", rows)
    return {"samples": len(rows), "tokens": sum(len(row["completion_ids"]) for row in rows)}


def draw(
    stage: Stage,
    prompts: Prompts,
    n: int,
    purpose: str,
    *,
    adapter: Path | None = None,
    model: Model | None = None,
    steer: Steering | None = None,
) -> list[dict[str, Any]]:
    """n samples a prompt, in prompt order, as rows for a file."""
    params = SamplingParams(max_new_tokens=stage.config.max_new_tokens)
    return drawing.draw(
        model or stage.model,
        prompts,
        n,
        params,
        (stage.config.seed, purpose, stage.number),
        console=stage.console,
        adapter=adapter,
        version=None if adapter is None else f"round-{stage.number - 1}",
        steer=steer,
    )


# 2. look ---------------------------------------------------------------------------------------------------


def look(stage: Stage) -> Result:
    """Relevance and fluency of every sample, as the starting model sees them -> looks.jsonl.

    What counts as relevant and fluent is fixed once, from the first round's samples, which are the starting model's.
    """
    rows = read_rows(stage.place / "samples.jsonl")
    views = views_of(stage, rows, "samples")
    if stage.number == 1:
        files.write_json(stage.directory / "band.json", asdict(Band.of(views)))
    band = band_of(stage)
    relevance, fluency = views.relevance(band), views.fluency(band)
    files.write_rows(
        stage.place / "looks.jsonl",
        [{"relevance": float(r), "fluency": float(f)} for r, f in zip(relevance, fluency, strict=True)],
    )
    return {"relevance": float(relevance.mean()), "fluency": float(fluency.mean())}


def band_of(stage: Stage) -> Band:
    return Band(**json.loads((stage.directory / "band.json").read_text(encoding="utf-8")))


def views_of(stage: Stage, rows: Sequence[dict[str, Any]], what: str) -> Views:
    """Views of rows that stand in prompt order, the same number of completions each prompt."""
    return drawing.views_of(stage.model, rows, what, seed=stage.config.seed, console=stage.console)


# 3. agree --------------------------------------------------------------------------------------------------


def agree(stage: Stage) -> Result:
    """Agreement on all that stands so far, shown before anything is trained on it."""
    seq = _judged(stage)["seq"]
    report = agreement.report(stage.store, up_to=seq, seed=stage.config.seed)
    files.write_json(stage.place / "agreement.json", report)
    comparisons = report["comparisons"]
    alpha = comparisons["alpha"]["ordinal"]
    if alpha["value"] is None:
        stage.say(f"agreement: {alpha['reason']}")
    else:
        share = comparisons["agreement"]
        stage.say(
            f"agreement: Krippendorff's alpha {alpha['value']:.2f}, {share['share']:.0%} of pairs of raters agree"
        )
    return {
        "alpha": alpha["value"],
        "alpha_reason": alpha["reason"],
        "share": comparisons["agreement"],
        "raters": report["raters"],
        "seq": seq,
    }


def _judged(stage: Stage) -> Result:
    found = Journal(stage.directory).done(stage.number, "judge")
    assert found is not None
    return found


# 4. reward -------------------------------------------------------------------------------------------------


def reward(stage: Stage) -> Result:
    """A reward model from all feedback so far, as of a named snapshot."""
    seq, settings = _judged(stage)["seq"], stage.config.reward
    stage.store.name_snapshot(f"round-{stage.number}", seq, note="reward model and policy of this round")
    feedback = stage.place / "feedback.jsonl"
    transfer.export_file(stage.store, feedback, up_to=seq)
    # A person's blind answers on held-out prompts are there to measure by.
    heldout = [prompt_to_json(prompt) for prompt in stage.splits["heldout"]]
    files.write_rows(feedback, [row for row in read_rows(feedback) if row["prompt"] not in heldout])
    every = [stage.directory / "rounds" / str(n) / "samples.jsonl" for n in range(1, stage.number + 1)]
    stage.say("learning a reward from the judgements")
    config = reward_model.Config(
        model=stage.config.model,
        data=[str(feedback)],
        samples=[str(path) for path in every],
        reference=[str(every[0])],
        seed=stage.config.seed,
        pool="mean",
        exit=settings.exit,
        probe=True,  # some hundred judgements: first what the trunk already knows, then the adapter
        adapter=reward_model.AdapterConfig(
            rank=settings.rank, alpha=2.0 * settings.rank, blocks=settings.blocks
        ),
        epochs=settings.epochs,
        prompts_per_step=settings.prompts_per_step,
        learning_rate=settings.learning_rate,
        rating_weight=settings.rating_weight,
        precision=stage.config.precision,
        threads=stage.config.threads,
    )
    found = reward_model.run(config, begin(stage.place / "reward", "reward_model", config), model=stage.model)
    if found["heldout_accuracy"] is not None:
        stage.say(
            f"reward model: {found['heldout_accuracy']:.0%} of {found['heldout_comparisons']} held-out comparisons "
            f"right; length alone {found['length_only_accuracy']:.0%}"
        )
    return found


def begin(directory: Path, recipe: str, config: Any) -> Path:
    """The recipe's run directory, begun unless it was."""
    if not (directory / "config.yaml").exists():
        rundir.start(directory, recipe, config)
    return directory


# 5. improve ------------------------------------------------------------------------------------------------


def ppo_config(stage: Stage) -> ppo.Config:
    settings = stage.config.policy
    return ppo.Config(
        model=stage.config.model,
        prompts=str(stage.directory / "prompts" / "train.jsonl"),
        reward=str(stage.place / "reward" / "model"),
        start=None if stage.parent_adapter is None else str(stage.parent_adapter),
        seed=stage.config.seed + stage.number - 1,
        steps=settings.steps,
        prompts_per_step=settings.prompts_per_step,
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=stage.config.max_new_tokens,
        missing_eos_penalty=None,  # completions are cut at a fixed length, so their end is not the policy's doing
        dense_reward=settings.dense_reward,
        entropy_coef=settings.entropy_coef,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        adapter=ppo.AdapterConfig(rank=settings.rank, alpha=2.0 * settings.rank, blocks=settings.blocks),
        kl=online.KLConfig(coef=settings.kl_coef, target=settings.kl_target, horizon=settings.kl_horizon),
        stop=online.StopConfig(max_kl=settings.max_kl),
        precision=stage.config.precision,
        threads=stage.config.threads,
        checkpoint_every=1,
    )


def improve(stage: Stage) -> Result:
    """PPO against the round's reward model, from the policy that the round began with."""
    config = ppo_config(stage)
    stage.say(f"improving the policy: PPO, {config.steps} steps")
    found = ppo.run(config, begin(stage.place / "ppo", "ppo", config), model=stage.model)
    if found["stopped"] is not None:
        stage.say(f"PPO stopped by itself after step {found['steps']}: {found['stopped']}")
    return found
