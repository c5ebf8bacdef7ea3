"""A loop's transitions from judgements to a candidate: how far raters agree, a reward, a policy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from plaudit import files
from plaudit.data.formats import from_json, write_records
from plaudit.data.judged import Judged, KnownIds, group_by_prompt, known_ids, prompt_key, split_by_prompt
from plaudit.evaluation.reward import measure
from plaudit.feedback import agreement, reliability
from plaudit.feedback.agreement import wilson
from plaudit.feedback.events import Event
from plaudit.feedback.served import SERVED, Served
from plaudit.loop.drawing import read_rows
from plaudit.loop.round import MEND, POLICY, Heard, Result, Round, as_list, gathered, place_of, rounded
from plaudit.loop.stages import begin
from plaudit.models.load import Model
from plaudit.recipes import ppo, reward_model
from plaudit.reward.judgements import Reading, check_varied
from plaudit.reward.judgements import begin as begin_reading
from plaudit.reward.model import RewardModel, load_reward_model
from plaudit.training import online
from plaudit.types import Preference, Ranking, Record

HELDOUT = 0.2
"""The share of prompts that the reward does not learn from."""
SERVED_AS = "served.jsonl"
FEWEST = 30
"""Comparisons without which nothing is said of a change of taste."""


# Agreement -------------------------------------------------------------------------------------------------


def agree(round: Round) -> Result:
    """Agreement and each rater's reliability by source; whether taste has changed; and how many raters the next items
    want."""
    seq = round.done("collect")["seq"]
    by_source: dict[str, list[Event]] = {}
    for one in gathered(round, seq):
        by_source.setdefault(one.source, []).append(one.event)
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

    # 2. Of the next items more raters, the less these agree, but no more than there are.
    collect, overlap = round.config.collect, round.standing.overlap
    alphas = {
        source: report["comparisons"]["alpha"]["ordinal"]["value"] for source, report in reports.items()
    }
    wanted = [
        min(
            reliability.raters_wanted(alpha, collect.overlap, collect.most_overlap),
            len({event.rater for event in by_source[source]}),
        )
        for source, alpha in alphas.items()
        if alpha is not None and source in ("studio", "panel")
    ]
    if wanted:
        overlap = max(collect.overlap, *wanted)
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
    accuracy, pairs = held_against(load_reward_model(round.last_reward, round.model), groups)
    found |= {"accuracy": accuracy, "pairs": pairs, "before": before["accuracy"]}
    found["changed"] = changed((before["accuracy"], before["pairs"]), (accuracy, pairs))
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
    event number `fresh`; without what the model's context does not hold. by_chance: without pairs that were chosen
    since the last reward was unsure of them, on which it is wrong more often than elsewhere."""
    found: dict[str, list[Record]] = {}
    room = Room(round.model)
    for one in gathered(round, seq, after=after):
        if by_chance and one.item.meta.get("chosen_by") == "worth":
            continue
        stale = "stale/" if one.event.seq <= fresh else ""
        for record in one.records:
            if room.holds(record):
                named = replace(record, rater=f"{stale}{one.source}/{one.event.rater}")
                found.setdefault(one.source, []).append(named)
    if room.left_out and not by_chance:
        round.say(f"{room.left_out} judgements of texts longer than the model's context are left out")
    return found


@dataclass(slots=True)
class Room:
    """What fits into a model's context, each text encoded once; left_out: how many records did not."""

    model: Model
    left_out: int = 0
    lengths: dict[Any, int] = field(default_factory=dict)

    def holds(self, record: Record) -> bool:
        tokenizer, texts = self.model.tokenizer, texts_of(record)
        if record.prompt not in self.lengths:
            self.lengths[record.prompt] = len(tokenizer.render(record.prompt))
        for text in texts:
            if text not in self.lengths:
                self.lengths[text] = len(tokenizer.complete(text))
        longest = self.lengths[record.prompt] + max(self.lengths[text] for text in texts)
        fits = longest <= self.model.trunk.shape.context and all(self.lengths[text] for text in texts)
        self.left_out += not fits
        return fits


def texts_of(record: Record) -> tuple[str, ...]:
    return record.completions if isinstance(record, Preference | Ranking) else (record.completion,)


def check(round: Round, seq: int) -> None:
    """UserError where nothing that was said has anything to teach."""
    told = records(round, seq)
    groups = grouped(round, [record for some in told.values() for record in some])
    training = split_by_prompt(groups, HELDOUT, round.config.seed)[0]
    reading, _ = begin_reading(training, Reading(rating_weight=round.config.reward.rating_weight))
    check_varied(training, reading, f"round {round.number}: what was said so far")


def grouped(round: Round, told: Sequence[Record]) -> list[Judged]:
    ids = known_ids(drawn_tokens(round), round.model.tokenizer.fingerprint)
    return group_by_prompt(told, round.model.tokenizer, ids, context=round.model.trunk.shape.context)


def sampled(round: Round) -> list[str]:
    """The files of all samples so far."""
    every = (place_of(round.directory, n) / "samples.jsonl" for n in range(1, round.number + 1))
    return [str(path) for path in every if path.exists()]


def drawn_tokens(round: Round) -> list[str]:
    """The same, and what the served model said that was judged."""
    served = round.place / SERVED_AS
    return sampled(round) + ([str(served)] if served.exists() else [])


def note_served(round: Round, seq: int) -> None:
    """What the served model said and people judged, token by token -> served.jsonl."""
    if "served" in round.sources:
        told = served_ids(round, gathered(round, seq))
        fingerprint = round.model.tokenizer.fingerprint
        files.write_rows(
            round.place / SERVED_AS,
            (
                {
                    "prompt": json.loads(prompt),
                    "completion": text,
                    "completion_ids": ids,
                    "tokenizer": fingerprint,
                }
                for (prompt, text), ids in told.items()
            ),
        )


def served_ids(round: Round, heard: Sequence[Heard]) -> KnownIds:
    """The tokens of answers that people judged, as they were drawn; where something in an answer was masked, its
    text's, ended as the answer was."""
    tokenizer, served, found = round.model.tokenizer, Served(round.store), KnownIds()
    responses = {id for one in heard if SERVED in one.item.meta for id in as_list(one.item.meta[SERVED])}
    for response in served.some(responses):
        for said in response.completions or ():
            drawn = said.ids is not None and tokenizer.decode(said.ids) == said.text
            ids = (
                list(said.ids or ())
                if drawn
                else tokenizer.complete(said.text, ended=said.finish != "length")
            )
            found[prompt_key(response.prompt or ""), said.text] = ids
    return found


def behaviour(round: Round) -> list[Record]:
    """The ratings that were to be expected when the round had collected."""
    rows = read_rows(round.place / "behaviour.jsonl")
    told = (replace(from_json(row["record"]), rater=f"behaviour/{row['rater']}") for row in rows)
    room = Room(round.model)
    return [record for record in told if room.holds(record)]


# Reward ----------------------------------------------------------------------------------------------------


def reward(round: Round) -> Result:
    """A reward model from all feedback so far, as of a named snapshot, each source by its weight and each rater by how
    reliable they are; and how right it is on each source's held-out prompts."""
    config, seq = round.config, round.done("collect")["seq"]
    round.store.name_snapshot(snapshot_of(round), seq, note="reward model and policy of this round of a loop")
    fresh = round.done("agree")["fresh"]
    told = records(round, seq, fresh=fresh)
    if "behaviour" in round.sources and (guessed := behaviour(round)):
        told["behaviour"] = guessed
    paths = []
    for source, some in sorted(told.items()):
        paths.append(round.place / f"feedback-{source}.jsonl")
        write_records(some, paths[-1])

    settings = config.reward
    recipe = reward_model.Config(
        model=config.model,
        data=[str(path) for path in paths],
        samples=drawn_tokens(round),
        reference=sampled(round)[:1],
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
    accuracy, pairs = on_heldout(round, learned, records(round, seq, after=fresh, by_chance=True))
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


def snapshot_of(round: Round) -> str:
    """What the round's judgements are called in its store."""
    attempt = f"/{round.taken_back.attempts + 1}" if round.taken_back.attempts else ""
    return f"{round.name}/round-{round.number}{attempt}"


def weights(round: Round, told: dict[str, list[Record]]) -> dict[str, float]:
    """How much each rater's judgements count: the source's weight, times reliability, times `stale` for what was said
    before taste changed."""
    agreed = files.read_json(round.place / "agreement.json", MEND)["raters"]
    found = {}
    for source, some in told.items():
        for name in {record.rater or "" for record in some}:
            known = name.removeprefix("stale/")
            weight = round.sources[source] * agreed.get(known, {"weight": 1.0})["weight"]
            found[name] = rounded(weight * (round.config.collect.stale if name != known else 1.0))
    return dict(sorted(found.items()))


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
    found = ppo.run(recipe, begin(round.place / POLICY, "ppo", recipe), model=round.model)
    if found["stopped"] is not None:
        round.say(f"PPO stopped by itself after step {found['steps']}: {found['stopped']}")
    return found
