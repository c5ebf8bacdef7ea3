"""A loop's online mode: the policy takes a small step for each judgement as it comes in, beside older ones.

The step is KTO's (Ethayarajh et al. 2024) on what was said of single completions, so that thumbs, choices, ratings and
corrections all teach. Its reference is the starting model: an older judgement that the policy still follows moves it
little, and one that it begins to forget moves it back (experience replay: Rolnick et al. 2019). What is a step, and
what stands beside it, follows from the store's log alone, not from when anybody looked at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import Field
from rich.console import Console

from plaudit import files
from plaudit.config import Config as Base
from plaudit.data.judged import group_by_prompt, known_ids
from plaudit.evaluation.run_report import write_run_report
from plaudit.loop.drawing import Row, draw
from plaudit.loop.learning import Room, sampled, served_ids, snapshot_of
from plaudit.loop.measure import kl_per_token
from plaudit.loop.round import MEND, POLICY, Heard, Result, Round, gathered, judgement_row, place_of
from plaudit.loop.stages import begin
from plaudit.models.branch import Branch
from plaudit.randomness import rng, torch_seed
from plaudit.recipes import kto
from plaudit.recipes.kto import Labelled
from plaudit.tensors import SamplingParams
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, check_weights, take_step
from plaudit.training.policy import AdapterConfig, make_policy, write_policy
from plaudit.training.stop import check_finite

RECIPE = "online"
LOOK_EVERY = 20
"""Judgements after which there is a checkpoint, and the distance from the start is measured."""
KL_PROMPTS = 24
"""Training prompts on which it is."""


class Config(Base):
    """Settings of a round's run. since: the number of the last event that its start has learned from; fresh: of the
    last that was said before taste changed."""

    model: str
    start: str | None = None
    seed: int = 0
    since: int = 0
    judgements_per_step: int = Field(ge=1)
    replay: int = Field(ge=0)
    learning_rate: float = Field(gt=0)
    beta: float = Field(gt=0)
    threshold: float
    fresh: int = 0
    stale: float
    max_kl: float
    max_grad_norm: float = 1.0
    adapter: AdapterConfig
    precision: machine.Precision = "auto"
    threads: int = 0


def config_of(round: Round) -> Config:
    config, settings = round.config, round.config.online
    rank = config.policy.rank
    return Config(
        model=config.model,
        start=None if round.parent is None else str(round.parent),
        seed=config.seed + round.number - 1,
        since=since(round),
        judgements_per_step=settings.judgements_per_step,
        replay=settings.replay,
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        threshold=settings.threshold,
        fresh=round.standing.fresh,
        stale=config.collect.stale,
        max_kl=config.policy.max_kl * round.standing.kl_target / config.policy.kl_target,
        adapter=AdapterConfig(rank=rank, alpha=2.0 * rank, blocks=config.policy.blocks),
        precision=config.precision,
        threads=config.threads,
    )


def since(round: Round) -> int:
    """The last event that the published policy has learned from: what a candidate learned that was kept out comes
    again, and what a policy came to no more that had gone far enough."""
    champion = round.standing.champion
    if champion == 0:
        return 0
    found = (round.journal.done(champion, "collect") or {}) | (round.journal.done(champion, "improve") or {})
    return int(found["seq"])  # of the steps, where it was made by steps


class Stream:
    """A round's policy while it learns, from its latest checkpoint if it has one; a context manager."""

    def __init__(self, round: Round) -> None:
        self.round, self.config = round, config_of(round)
        self.kto = kto.Config(model=self.config.model, data=[str(round.directory)], beta=self.config.beta)
        self.directory = begin(round.place / POLICY, RECIPE, self.config)
        self.policy = make_policy(
            round.model, self.config.adapter,
            seed=torch_seed(self.config.seed, "policy adapter"), start=self.config.start,
        )  # fmt: skip
        self.parameters = self.policy.parameters()
        self.optimizer = adam(self.parameters, learning_rate=self.config.learning_rate)
        self.state: dict[str, Any] = {
            "step": 0, "seq": self.config.since, "judgements": 0, "learned": {}, "stopped": None,
        }  # fmt: skip
        if (found := checkpoint.latest(self.directory / "checkpoints")) is not None:
            tensors, self.state = found
            self.policy.load_state(checkpoint.unprefixed("policy", tensors))
            checkpoint.load_optimizer(self.optimizer, tensors)
        self.saved = self.state["step"]
        self.metrics = Metrics(
            self.directory, total=self.saved, done=self.saved, title=RECIPE, console=round.console
        )
        # What was taken back before the round began is not learned by it, though it stood in its day.
        self.begun = int(round.done("sample")["seq"])
        self.before = gathered(round, self.begun)
        self.ids = known_ids(sampled(round), round.model.tokenizer.fingerprint)
        self.room, self.labelled = Room(round.model), dict[str, list[Labelled]]()
        self.reliable = reliability_before(round)
        self.largest = max(weight for name, weight in round.sources.items() if name != "behaviour")

    def __enter__(self) -> Self:
        self.metrics.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.metrics.__exit__(kind, error, trace)

    @property
    def stopped(self) -> bool:
        """Whether it learns no more, since it is too far from the start."""
        return self.state["stopped"] is not None

    # What was said -----------------------------------------------------------------------------------------

    def take(self, up_to: int | None = None, *, last: bool = False) -> None:
        """Steps for what was said up to this event (None: so far) and is not learned from yet, in the log's order, then
        a checkpoint. last: nothing more comes, so that what is left over makes a step, too."""
        coming, stands, seq = list[str](), list[Heard](), self.state["seq"]
        per_step = self.config.judgements_per_step
        left = gathered(self.round, up_to, after=self.state["seq"])
        self.metrics.expect(self.state["step"] + math.ceil(len(left) / per_step))
        for event in self.round.store.log(after=self.state["seq"]):
            if self.stopped or (up_to is not None and event.seq > up_to):
                break
            if event.item is not None:
                seq, stands = event.seq, self.as_of(event.seq)
                if stands and stands[-1].event.id == event.id and self.teaches(stands[-1]):
                    coming.append(event.id)
            if len(coming) == per_step:
                self._step(event.seq, coming, stands)
                coming = []
            elif not coming:
                self.state["seq"] = event.seq
        if coming and last:
            self._step(seq, coming, stands)
        if self.state["step"] > self.saved:
            self._save()

    def as_of(self, seq: int) -> list[Heard]:
        """What stood when this event was written, or when the round began."""
        if seq <= self.begun:
            return [one for one in self.before if one.event.seq <= seq]
        return gathered(self.round, seq)

    def teaches(self, one: Heard) -> bool:
        return self.weight(one) > 0 and bool(self.said(one))

    def said(self, one: Heard) -> list[Labelled]:
        """The completions that it calls good or bad; none where it is a tie, or longer than the model's context."""
        if one.event.id not in self.labelled:
            records = [record for record in one.records if self.room.holds(record)]
            model, ids = self.round.model, served_ids(self.round, [one]) or self.ids
            groups = group_by_prompt(records, model.tokenizer, ids, context=model.trunk.shape.context)
            self.labelled[one.event.id] = kto.labelled(groups, kto.votes_of(records, self.config.threshold))
        return self.labelled[one.event.id]

    def weight(self, one: Heard) -> float:
        """How much it counts, 1 at most: its source beside the others, its rater's reliability as far as it was known
        when the round began, and whether taste has changed since."""
        source = self.round.sources[one.source] / self.largest
        reliable = self.reliable.get(f"{one.source}/{one.event.rater}", 1.0)
        return source * reliable * (self.config.stale if one.event.seq <= self.config.fresh else 1.0)

    # Steps -------------------------------------------------------------------------------------------------

    def _step(self, seq: int, coming: Sequence[str], stands: Sequence[Heard]) -> None:
        """One step, as large as its batch counts: of these judgements, and of older ones that are drawn."""
        self.state["seq"] = seq
        new = [one for one in stands if one.event.id in coming]
        if not new:
            return
        old = [one for one in stands if one.event.id not in coming and self.teaches(one)]
        worth = [self.weight(one) for one in old]
        chosen = drawn(worth, self.config.replay * len(new), (self.config.seed, "replay", seq))
        replayed = [old[i] for i in chosen]
        # 1. What is new counts by its weight. What is drawn was drawn by it, and counts like the best of its kind.
        most = max((worth[i] for i in chosen), default=0.0)
        weighed = [(one, self.weight(one)) for one in new] + [(one, most) for one in replayed]
        batch = [replace(said, weight=weight) for one, weight in weighed for said in self.said(one)]
        batch.sort(key=lambda said: (said.prompt, said.completion))  # what shares a prompt is packed together

        # 2. The baseline is of other prompts' completions: those of the batch, or else of what was said before.
        known = [*batch, *(said for one in old[-LOOK_EVERY:] for said in self.said(one))]
        others = kto.mismatched(batch, known) if len({said.key for said in known}) > 1 else []
        texts = sorted({(said.prompt, said.completion) for said in batch}.union(others))
        start = kto.sums_of(texts, Branch(self.round.model.trunk), self.kto)
        row = kto.take_gradients(batch, others, self.policy, dict(zip(texts, start, strict=True)), self.kto)

        # 3. Adam's steps are as large whatever the loss is multiplied by; so the rate carries what the batch is worth.
        row["learning_rate"] = self.config.learning_rate * float(np.mean([said.weight for said in batch]))
        row["replayed"] = float(len(replayed))
        row["grad_norm"] = take_step(
            self.optimizer, self.parameters,
            learning_rate=row["learning_rate"], max_grad_norm=self.config.max_grad_norm,
        )  # fmt: skip
        check_finite(self.state["step"], self.directory, row["loss"], row["grad_norm"])
        self._count(new, replayed)

        # 4. Now and then a look at how far it has gone, and a checkpoint; what a kill cuts off since then comes again.
        line = f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.2f}"
        step = self.state["step"]
        if looks := step % max(1, LOOK_EVERY // self.config.judgements_per_step) == 0:
            row["kl"] = self._kl()
            line += f"  KL {row['kl']:.3f}"
            if row["kl"] > self.config.max_kl:
                self.state["stopped"] = (
                    f"KL {row['kl']:.3f} nats a token is above max_kl {self.config.max_kl:.3f}"
                )
                self.round.say(f"stops learning after step {step}: {self.state['stopped']}")
        self.metrics.log(step, row, line)
        if looks:
            self._save()

    def _count(self, new: Sequence[Heard], replayed: Sequence[Heard]) -> None:
        self.state["step"] += 1
        self.state["judgements"] += len(new)
        for one in (*new, *replayed):
            self.state["learned"].setdefault(one.event.id, judgement_row(one))

    def _kl(self) -> float:
        """Nats a token from the start, on what the policy says now of some training prompts."""
        round, step = self.round, self.state["step"]
        rows = draw(
            round.model,
            round.some("kl", round.prompts, KL_PROMPTS),
            1,
            SamplingParams(max_new_tokens=round.config.max_new_tokens),
            (self.config.seed, "kl", step),
            console=Console(quiet=True),
            version=f"step-{step}",
            adapter=self.policy.adapter,
        )
        return kl_per_token(None, round.model, rows)

    def _save(self) -> None:
        tensors = checkpoint.prefixed("policy", self.policy.state())
        tensors |= checkpoint.optimizer_tensors(self.optimizer)
        checkpoint.save(self.directory / "checkpoints", self.state["step"], tensors, self.state)
        self.saved = self.state["step"]

    def finish(self, up_to: int) -> Result:
        """Learns what is left up to this event, and writes the policy, its report and summary."""
        self.take(up_to, last=True)
        check_weights(self.parameters, self.directory)
        write_policy(self.policy, self.round.model, self.directory)
        self._name_what_fell(up_to)
        summary = {
            "steps": self.state["step"],
            "judgements": self.state["judgements"],
            "seq": self.state["seq"] if self.stopped else up_to,
            "stopped": self.state["stopped"],
            "kl": self._kl(),
        }
        write_run_report(self.directory, summary)
        files.write_json(self.directory / "summary.json", summary)
        return summary

    def _name_what_fell(self, up_to: int) -> None:
        """The round's own snapshot holds what stands at its end. What was learned and has fallen since stood in these:
        forgetting whoever said it names the policy, too."""
        stands = {one.event.id for one in gathered(self.round, up_to)}
        for id in sorted(self.state["learned"].keys() - stands):
            if (event := self.round.store.event(id)) is not None:
                name = f"{snapshot_of(self.round)}/event-{event.seq}"
                self.round.store.name_snapshot(name, event.seq, note="an online step of this round of a loop")


def drawn(weights: Sequence[float], count: int, key: tuple[int | str, ...]) -> list[int]:
    """So many places of different ones, each the likelier the more it weighs, in order."""
    count = min(count, len(weights))
    if count == 0:
        return []
    share = np.asarray(weights) / np.sum(weights)
    return sorted(int(i) for i in rng(*key).choice(len(weights), count, replace=False, p=share))


def improve(round: Round) -> Result:
    """What the round's judgements are worth to the policy, as far as it has not learned it while they came in."""
    with Stream(round) as stream:
        return stream.finish(round.done("collect")["seq"])


def reliability_before(round: Round) -> dict[str, float]:
    """Of raters, as "source/rater", by the agreement of the round before."""
    if round.number == 1:
        return {}
    found = files.read_json(place_of(round.directory, round.number - 1) / "agreement.json", MEND)["raters"]
    return {name: about["weight"] for name, about in found.items()}


def learned(round: Round) -> list[Row]:
    """The judgements that stood in one of the round's steps, as rows of events.jsonl; those among them that were taken
    back since, too."""
    found = checkpoint.latest(round.place / POLICY / "checkpoints")
    return [] if found is None or round.config.mode != "online" else list(found[1]["learned"].values())
