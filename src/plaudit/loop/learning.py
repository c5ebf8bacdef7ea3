"""A loop's transitions from judgements to a candidate: how far raters agree, a reward, a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from plaudit import files
from plaudit.data.formats import write_records
from plaudit.data.judged import Judged, group_by_prompt, known_ids, split_by_prompt
from plaudit.evaluation.reward import measure
from plaudit.feedback import agreement, implicit, reliability
from plaudit.feedback.agreement import wilson
from plaudit.feedback.events import Event
from plaudit.feedback.judgements import everything
from plaudit.loop.round import Result, Round, gathered, place_of
from plaudit.loop.stages import begin
from plaudit.recipes import ppo, reward_model
from plaudit.reward.model import RewardModel, load_reward_model
from plaudit.training import online
from plaudit.types import Demonstration, Record

HELDOUT = 0.2
"""The share of prompts that the reward does not learn from."""
FEWEST = 30
"""Comparisons without which nothing is said of a change of taste."""


# Agreement -------------------------------------------------------------------------------------------------


def agree(round: Round) -> Result:
    """Agreement and each rater's reliability by source; whether taste has changed; and how many raters the next items
    want."""
    seq = round.done("collect")["seq"]
    by_source: dict[str, list[Event]] = {}
    for event, _, source in gathered(round, seq):
        by_source.setdefault(source, []).append(event)
    reports = {source: agreement.of_events(events, round.config.seed) for source, events in by_source.items()}
    raters = {
        f"{source}/{rater}": asdict(found)
        for source, events in by_source.items()
        for rater, found in reliability.of_events(events).items()
    }
    files.write_json(round.place / "agreement.json", {"sources": reports, "raters": raters})

    # 1. Raters whom the others contradict count for less, or for nothing.
    doubted = {name: found["weight"] for name, found in raters.items() if found["weight"] < 0.5}
    if doubted:
        told = ", ".join(f"{name} {weight:.2f}" for name, weight in sorted(doubted.items()))
        round.say(f"raters who count for less, since others contradict them: {told}")

    # 2. Of the next items more raters, the less these agree.
    collect, overlap = round.config.collect, round.standing.overlap
    alphas = {
        source: report["comparisons"]["alpha"]["ordinal"]["value"] for source, report in reports.items()
    }
    known = [alpha for source, alpha in alphas.items() if alpha is not None and source in ("studio", "panel")]
    if known:
        overlap = reliability.raters_wanted(min(known), collect.overlap, collect.most_overlap)
    shown = ", ".join(f"{source} {alpha:.2f}" for source, alpha in alphas.items() if alpha is not None)
    round.say(f"Krippendorff's alpha: {shown or 'nobody judged what others judged'}")

    # 3. What the last reward did not foresee.
    drift = drifted(round, seq)
    fresh = round.standing.seq if drift["changed"] else round.standing.fresh
    if drift["changed"]:
        round.say(
            f"taste has changed: the last reward agrees with {drift['accuracy']:.0%} of what is new, where it agreed "
            f"with {drift['before']:.0%}; what was said before counts {collect.stale:g} times as much"
        )
    return {"alpha": alphas, "doubted": doubted, "overlap": overlap, "drift": drift, "fresh": fresh}


def drifted(round: Round, seq: int) -> Result:
    """Whether the last round's reward agrees with new comparisons less often than it did with those that it was held
    against, by more than chance (their 95 % intervals are apart, pairs counted once however many judged them)."""
    found: Result = {"changed": False, "accuracy": None, "pairs": 0, "before": None}
    before = {} if round.last_reward is None else round.journal.done(round.number - 1, "reward") or {}
    if round.last_reward is None or before.get("accuracy") is None:
        return found
    told = records(round, seq, after=round.standing.seq, by_chance=True)
    groups = grouped(round, [record for some in told.values() for record in some])
    figures, pairs = held_against(load_reward_model(round.last_reward, round.model), groups)
    found |= {"accuracy": figures, "pairs": pairs, "before": before["accuracy"]}
    found["changed"] = changed((before["accuracy"], before["pairs"]), (figures, pairs))
    return found


def changed(before: tuple[float | None, int], now: tuple[float | None, int]) -> bool:
    """Whether two shares, each of so many, differ downwards beyond chance."""
    if before[0] is None or now[0] is None or min(before[1], now[1]) < FEWEST:
        return False
    old, new = (
        wilson(math.floor(share * n + 0.5), n) for share, n in ((before[0], before[1]), (now[0], now[1]))
    )
    return old is not None and new is not None and new[1] < old[0]


def held_against(reward: RewardModel, groups: Sequence[Judged]) -> tuple[float | None, int]:
    """The share of comparisons that the reward agrees with, None where there are none, and of how many pairs."""
    if not groups:
        return None, 0
    accuracy = measure(reward, groups, groups)["heldout_accuracy"]
    return accuracy, len({(g.key, frozenset((p.a, p.b))) for g in groups for p in g.pairs if p.target != 0.5})


def records(
    round: Round, seq: int, *, after: int = 0, fresh: int = 0, by_chance: bool = False
) -> dict[str, list[Record]]:
    """What is learned from, by source, each under "source/rater", and under "stale/source/rater" what was said up to
    event number `fresh`. by_chance: without pairs that were chosen since the
    last reward was unsure of them, on which it is wrong more often than elsewhere."""
    wanted = {
        event.id: source
        for event, item, source in gathered(round, seq, after=after)
        if not (by_chance and item.meta.get("chosen_by") == "worth")
    }
    found: dict[str, list[Record]] = {}
    for judged in everything(round.store, seq):
        source = wanted.get(judged.event)
        if source is not None and not isinstance(judged.record, Demonstration):
            stale = "stale/" if judged.seq <= fresh else ""
            record = replace(judged.record, rater=f"{stale}{source}/{judged.rater}")
            found.setdefault(source, []).append(record)
    return found


def grouped(round: Round, told: Sequence[Record]) -> list[Judged]:
    samples = [str(path) for n in range(1, round.number + 1) if (path := samples_of(round, n)).exists()]
    ids = known_ids(samples, round.model.tokenizer.fingerprint)
    return group_by_prompt(told, round.model.tokenizer, ids, context=round.model.trunk.shape.context)


def samples_of(round: Round, number: int) -> Path:
    return place_of(round.directory, number) / "samples.jsonl"


# Reward ----------------------------------------------------------------------------------------------------


def reward(round: Round) -> Result:
    """A reward model from all feedback so far, as of a named snapshot, each source by its weight and each rater by how
    reliable they are; and how right it is on each source's held-out prompts."""
    config, seq = round.config, round.done("collect")["seq"]
    name = f"{config.name}/round-{round.number}" + (f"/{round.attempt + 1}" if round.attempt else "")
    round.store.name_snapshot(name, seq, note="reward model and policy of this round of a loop")
    told = records(round, seq, fresh=round.done("agree")["fresh"])
    if config.sources.behaviour:
        calibrated, guessed = implicit.of_store(round.store, config.seed)
        round.say(
            f"behaviour: {len(guessed)} answers"
            if calibrated.counts
            else f"behaviour does not foretell opinions here ({calibrated.both} answers have both): not learned from"
        )
        if guessed:
            told["behaviour"] = [replace(one, rater=f"behaviour/{one.rater}") for one in guessed]
    paths = []
    for source, some in sorted(told.items()):
        paths.append(round.place / f"feedback-{source}.jsonl")
        write_records(some, paths[-1])

    settings = config.reward
    every = [n for n in range(1, round.number + 1) if samples_of(round, n).exists()]
    recipe = reward_model.Config(
        model=config.model,
        data=[str(path) for path in paths],
        samples=[str(samples_of(round, n)) for n in every],
        reference=[str(samples_of(round, every[0]))] if every else [],
        seed=config.seed,
        heldout=HELDOUT,
        weights=weights(round, told),
        pool="mean",
        exit=settings.exit,
        probe=True,
        adapter=reward_model.AdapterConfig(
            rank=settings.rank, alpha=2.0 * settings.rank, blocks=settings.blocks
        ),
        epochs=settings.epochs,
        prompts_per_step=settings.prompts_per_step,
        learning_rate=settings.learning_rate,
        rating_weight=settings.rating_weight,
        precision=config.precision,
        threads=config.threads,
    )
    round.say(f"learning a reward from {sum(map(len, told.values()))} judgements")
    found = reward_model.run(recipe, begin(round.place / "reward", "reward_model", recipe), model=round.model)
    learned = load_reward_model(round.place / "reward" / "model", round.model)
    accuracy, pairs = on_heldout(round, learned, records(round, seq, by_chance=True))
    apart = {source: on_heldout(round, learned, {source: some}) for source, some in told.items()}
    by_source = {source: {"accuracy": share, "pairs": n} for source, (share, n) in apart.items()}
    shown = ", ".join(f"{source} {share:.0%}" for source, (share, _) in apart.items() if share is not None)
    round.say(f"the reward agrees with held-out comparisons: {shown or 'there are none'}")
    return {
        "judgements": sum(map(len, told.values())),
        "accuracy": accuracy,
        "pairs": pairs,
        "by_source": by_source,
        "length_only_accuracy": found["length_only_accuracy"],
    }


def weights(round: Round, told: dict[str, list[Record]]) -> dict[str, float]:
    """How much each rater's judgements count: the source's weight, times reliability, times `stale` for what was said
    before taste changed."""
    agreed = files.read_json(round.place / "agreement.json", "start the run again")["raters"]
    found = {}
    for source, some in told.items():
        for name in {record.rater for record in some}:
            known = (name or "").removeprefix("stale/")
            weight = getattr(round.config.sources, source) * agreed.get(known, {"weight": 1.0})["weight"]
            old = round.config.collect.stale if (name or "").startswith("stale/") else 1.0
            found[name or ""] = round_to(weight * old)
    return dict(sorted(found.items()))


def round_to(value: float) -> float:
    return float(f"{value:.6g}")


def on_heldout(round: Round, learned: RewardModel, told: dict[str, list[Record]]) -> tuple[float | None, int]:
    """`held_against` of what was said of prompts that the reward did not learn from."""
    groups = grouped(round, [record for some in told.values() for record in some])
    return held_against(learned, split_by_prompt(groups, HELDOUT, round.config.seed)[1])


# Policy ----------------------------------------------------------------------------------------------------


def improve(round: Round) -> Result:
    """PPO against the round's reward, from the policy that is published."""
    config, target = round.config, round.standing.kl_target
    settings = config.policy
    prompts = round.directory / "prompts" / "train.jsonl"
    recipe = ppo.Config(
        model=config.model,
        prompts=str(prompts),
        reward=str(round.place / "reward" / "model"),
        start=None if round.parent is None else str(round.parent),
        seed=config.seed + round.number - 1,
        steps=settings.steps,
        prompts_per_step=settings.prompts_per_step,
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=config.max_new_tokens,
        missing_eos_penalty=config.missing_eos_penalty,
        dense_reward=settings.dense_reward,
        entropy_coef=settings.entropy_coef,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        adapter=ppo.AdapterConfig(rank=settings.rank, alpha=2.0 * settings.rank, blocks=settings.blocks),
        kl=online.KLConfig(coef=settings.kl_coef, target=target, horizon=settings.kl_horizon),
        stop=online.StopConfig(max_kl=settings.max_kl * target / settings.kl_target),
        precision=config.precision,
        threads=config.threads,
        checkpoint_every=1,
    )
    round.say(f"improving the policy: PPO, {recipe.steps} steps, {target:.2f} nats a token")
    found = ppo.run(recipe, begin(round.place / "ppo", "ppo", recipe), model=round.model)
    if found["stopped"] is not None:
        round.say(f"PPO stopped by itself after step {found['steps']}: {found['stopped']}")
    return found
