"""The transitions of one round, in order: sample, look, judge, agree, reward, improve, evaluate.

Each reads files of the transitions before it and writes its own below rounds/N; its result is what the journal
keeps. Each may be killed and taken again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from plaudit import files
from plaudit.evaluation.perception import Band, Views, look_at
from plaudit.feedback import agreement, panel, terminal, transfer
from plaudit.feedback.events import (
    Item,
    comparison_event,
    drawn_order,
    event_id,
    rating_event,
    skip_event,
)
from plaudit.feedback.panel import Impression, Rater
from plaudit.feedback.store import Store
from plaudit.loop.rounds import Journal
from plaudit.loop.show import Bar
from plaudit.models.adapter import load_adapter
from plaudit.models.load import Model, linear_sizes
from plaudit.randomness import rng
from plaudit.recipes import ppo, reward_model
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from plaudit.training import rundir
from plaudit.types import Message, UserError, prompt_to_json

if TYPE_CHECKING:
    from plaudit.loop.quickstart import Config

Result = dict[str, Any]
Prompts = list[tuple[Message, ...]]
LEASE = 3600.0
LEAST_ANSWERS = 8
"""So many of a person's comparisons must prefer a side, or there is nothing to learn (fewer where fewer are asked)."""


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
    write_rows(stage.place / "samples.jsonl", rows)
    return {"samples": len(rows), "tokens": sum(len(row["completion_ids"]) for row in rows)}


def draw(
    stage: Stage,
    prompts: Prompts,
    n: int,
    purpose: str,
    *,
    adapter: Path | None = None,
    model: Model | None = None,
) -> list[dict[str, Any]]:
    """n samples a prompt, in prompt order, as rows for a file."""
    model = model or stage.model
    trunk, tokenizer = model.trunk, model.tokenizer
    engine = LocalEngine(trunk, tokenizer)
    if adapter is not None:
        engine.load(
            load_adapter(adapter, linear_sizes(trunk), trunk.shape.depth, trunk.wide),
            f"round-{stage.number - 1}",
        )
    params = SamplingParams(max_new_tokens=stage.config.max_new_tokens)
    ids = [tokenizer.render(prompt) for prompt in prompts]
    key = (stage.config.seed, purpose, stage.number)
    with Bar(stage.console, "sampling", total=len(prompts) * n) as bar:
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
    write_rows(
        stage.place / "looks.jsonl",
        [{"relevance": float(r), "fluency": float(f)} for r, f in zip(relevance, fluency, strict=True)],
    )
    return {"relevance": float(relevance.mean()), "fluency": float(fluency.mean())}


def band_of(stage: Stage) -> Band:
    return Band(**json.loads((stage.directory / "band.json").read_text(encoding="utf-8")))


def views_of(stage: Stage, rows: Sequence[dict[str, Any]], what: str) -> Views:
    """Views of rows that stand in prompt order, the same number of completions each prompt."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["prompt"]), []).append(row)
    prompts = [group[0]["prompt_ids"] for group in groups.values()]
    completions = [[row["completion_ids"] for row in group] for group in groups.values()]
    with Bar(stage.console, f"looking at {what}", total=0) as bar:
        return look_at(stage.model.trunk, prompts, completions, seed=stage.config.seed, progress=bar.of)


def impressions(rows: Sequence[dict[str, Any]], looks: Sequence[dict[str, float]]) -> list[Impression]:
    return [Impression(row["completion"], **seen) for row, seen in zip(rows, looks, strict=True)]


# 3. judge --------------------------------------------------------------------------------------------------


def judge(stage: Stage) -> Result:
    """Pairs of completions become items; raters claim them and their judgements become events."""
    rows = read_rows(stage.place / "samples.jsonl")
    seen = impressions(rows, read_rows(stage.place / "looks.jsonl"))
    prompts, items, places = stage.prompts, [], {}
    for first, second in pairs_of(rows):
        item = Item(
            prompt=prompts[first // stage.config.completions],
            completions=(rows[first]["completion"], rows[second]["completion"]),
            policy_version=rows[first]["policy_version"],
            meta={"round": stage.number, "pair": [first, second]},
        )
        items.append(item)
        places[item.id] = (first, second)
    stage.store.add_items(items)
    if stage.config.raters == "me":
        _i_judge(stage, items)
    else:
        stage.say(f"seven simulated raters judge {len(items)} pairs, {stage.config.overlap} raters a pair")
        _panel_judges(stage, {item.id: item for item in items}, places, seen)
    seq = stage.store.last_seq()
    current = stage.store.current(seq)
    mine = [event for event in current if event.item in places and event.kind != "skip"]
    return {"items": len(items), "judgements": len(mine), "seq": seq}


def pairs_of(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """Neighbouring samples of one prompt, two by two, where their texts differ."""
    for first in range(0, len(rows) - 1, 2):
        same_prompt = rows[first]["prompt"] == rows[first + 1]["prompt"]
        if same_prompt and rows[first]["completion"] != rows[first + 1]["completion"]:
            yield first, first + 1


def _spread_out(items: Sequence[Item], count: int) -> list[Item]:
    """So many items, of as many prompts as there are."""
    by_turn = sorted(
        range(len(items)), key=lambda i: (sum(items[i].prompt == x.prompt for x in items[:i]), i)
    )
    return [items[i] for i in by_turn[:count]]


def _i_judge(stage: Stage, items: Sequence[Item]) -> None:
    """The person compares pairs, as many as `answers` or until they stop. Where too few answers prefer a side,
    UserError; the run taken up goes on with the pairs that are left, or with new ones where none is."""
    order = [item.id for item in _spread_out(items, len(items))]
    answers = stage.config.answers

    def said() -> dict[str | None, Any]:
        mine = [e for e in stage.store.current() if e.rater == "me" and e.kind in ("comparison", "skip")]
        return {e.item: e.payload.get("choice") for e in mine if e.item in order}

    def preferring(choices: dict[str | None, Any]) -> int:
        return sum(choice in (0, 1) for choice in choices.values())

    before, offered, least = said(), answers, min(LEAST_ANSWERS, answers)
    while offered < len(order) and preferring(before) < least and before.keys() >= set(order[:offered]):
        offered += answers
    left = len(order[:offered]) - len(before)
    stage.say(f"compare {left} pairs: what you prefer is what the model learns")
    key = (stage.config.seed, stage.number)
    terminal.compare_pairs(stage.store, order[:offered], "me", stage.ask, Console(), key=key)
    if (found := preferring(after := said())) < least:
        go_on = f"go on with `plaudit resume {stage.directory}` and compare more"
        raise UserError(
            f"too little to learn from: of {len(after)} answers, which are kept, {found} prefer a side, and at "
            f"least {least} must",
            where=f"round {stage.number}",
            fix=go_on if len(after) < len(order) else "start again with --overwrite and another seed",
        )


def _next_turn(store: Store, raters: Sequence[Rater]) -> int:
    """The rater after the one who answered last: whose turn it is depends on the log alone, so that a run killed
    between a claim and its answer goes on with that claim."""
    names = [rater.name for rater in raters]
    answered = [event.rater for event in store.log() if event.assignment is not None]
    return names.index(answered[-1]) + 1 if answered and answered[-1] in names else 0


def _panel_judges(
    stage: Stage, items: dict[str, Item], places: dict[str, tuple[int, int]], seen: Sequence[Impression]
) -> None:
    """Each rater in turn claims an item, compares its two completions and rates both."""
    raters = panel.training_raters(stage.config.seed)
    stage.store.assign(items, overlap=stage.config.overlap)
    turn = _next_turn(stage.store, raters)
    with Bar(stage.console, "judging", total=len(items) * stage.config.overlap) as bar:
        idle = 0
        while idle < len(raters):
            rater = raters[turn % len(raters)]
            turn += 1
            assignment = stage.store.claim(rater.name, now=time.time(), lease_seconds=LEASE)
            if assignment is None or assignment.item not in items:
                idle += 1
                continue
            idle = 0
            first, second = places[assignment.item]
            events = opinions(
                rater, items[assignment.item], (seen[first], seen[second]), stage.number, assignment.id
            )
            stage.store.extend(events)
            bar.step(None)


def opinions(
    rater: Rater, item: Item, pair: tuple[Impression, Impression], round: int, assignment: int | None
) -> list[Any]:
    """One rater's events on one item: a comparison and a rating of each side, or a skip."""
    key = (round, item.id)
    order = drawn_order(2, rater.seed, rater.name, *key)
    fields: dict[str, Any] = {"policy_version": item.policy_version, "presented": order}
    said = rater.compare(*pair, key=key, presented=order)
    ids = [event_id(rater.seed, rater.name, *key, part) for part in ("compare", "rate 0", "rate 1")]
    if said is None:
        return [skip_event(item.id, rater.name, id=ids[0], assignment=assignment, **fields)]
    events = [
        comparison_event(
            item.id,
            rater.name,
            said.choice,
            strength=said.strength,
            id=ids[0],
            assignment=assignment,
            **fields,
        )
    ]
    for side in (0, 1):
        scores = rater.rate(pair[side], key=(*key, side))
        if scores is not None:
            events.append(
                rating_event(item.id, rater.name, scores, completion=side, id=ids[1 + side], **fields)
            )
    return events


# 4. agree --------------------------------------------------------------------------------------------------


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


# 5. reward -------------------------------------------------------------------------------------------------


def reward(stage: Stage) -> Result:
    """A reward model from all feedback so far, as of a named snapshot."""
    seq, settings = _judged(stage)["seq"], stage.config.reward
    stage.store.name_snapshot(f"round-{stage.number}", seq, note="reward model and policy of this round")
    feedback = stage.place / "feedback.jsonl"
    transfer.export_file(stage.store, feedback, up_to=seq)
    # A person's blind answers on held-out prompts are there to measure by.
    heldout = [prompt_to_json(prompt) for prompt in stage.splits["heldout"]]
    write_rows(feedback, [row for row in read_rows(feedback) if row["prompt"] not in heldout])
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
        precision=stage.config.precision,
        threads=stage.config.threads,
    )
    found = reward_model.run(
        config, _begin(stage.place / "reward", "reward_model", config), model=stage.model
    )
    if found["heldout_accuracy"] is not None:
        stage.say(
            f"reward model: {found['heldout_accuracy']:.0%} of {found['heldout_comparisons']} held-out comparisons "
            f"right; length alone {found['length_only_accuracy']:.0%}"
        )
    return found


def _begin(directory: Path, recipe: str, config: Any) -> Path:
    """The recipe's run directory, begun unless it was."""
    if not (directory / "config.yaml").exists():
        rundir.start(directory, recipe, config)
    return directory


# 6. improve ------------------------------------------------------------------------------------------------


def improve(stage: Stage) -> Result:
    """PPO against the round's reward model, from the policy that the round began with."""
    settings = stage.config.policy
    config = ppo.Config(
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
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        adapter=ppo.AdapterConfig(rank=settings.rank, alpha=2.0 * settings.rank, blocks=settings.blocks),
        kl=ppo.KLConfig(coef=settings.kl_coef, target=settings.kl_target, horizon=settings.kl_horizon),
        stop=ppo.StopConfig(max_kl=settings.max_kl),
        precision=stage.config.precision,
        threads=stage.config.threads,
        checkpoint_every=1,
    )
    stage.say(f"improving the policy: PPO, {settings.steps} steps")
    return ppo.run(config, _begin(stage.place / "ppo", "ppo", config), model=stage.model)


# Files -----------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """UserError where the file is missing or broken."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold what else ends a line
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix="start the run again") from None
