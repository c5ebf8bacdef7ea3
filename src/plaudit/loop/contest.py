"""A loop's transitions from a candidate to a verdict: what it says on held-out prompts, and whether judges who took no
part in its training prefer it to its parent and to the start."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from plaudit import files
from plaudit.evaluation.gate import Gate, Rules, length_controlled
from plaudit.evaluation.metrics import bootstrap, distinct_2, outcomes
from plaudit.feedback import panel
from plaudit.feedback.events import Event, prompt_from_json
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.tasks import Task
from plaudit.loop.collecting import impressions, wait_for
from plaudit.loop.drawing import Prompts, Row, draw, read_rows
from plaudit.loop.measure import kl_per_token
from plaudit.loop.round import POLICY, Result, Round
from plaudit.models.load import Model, load_model
from plaudit.reward.model import load_reward_model
from plaudit.reward.open import judge_of, open_for_texts
from plaudit.reward.rubric import as_text
from plaudit.reward.score import samples_of
from plaudit.reward.scores import scored
from plaudit.tensors import SamplingParams
from plaudit.types import UserError

CANDIDATE, PARENT, ANCHOR = "candidate", "parent", "anchor"
BATCH = 40
"""Held-out pairs that people are given at a time: what the first ones decide need not be asked of the others."""
Rows = dict[str, list[Row]]


# Evaluate --------------------------------------------------------------------------------------------------


def evaluate(round: Round) -> Result:
    """One completion of each contested prompt by the candidate, as exported and reloaded, by its parent and by the
    start -> contest.jsonl; each suite's cases -> suites.jsonl; and the candidate's figures."""
    round.say("measuring on held-out prompts")
    candidate = load_model(
        str(round.place / POLICY / "model"), round.model.trunk.dtype, round.model.trunk.device
    )
    said = completions(round, candidate, round.contested, "contest")
    files.write_rows(
        round.place / "contest.jsonl",
        [{name: rows[i] for name, rows in said.items()} for i in range(len(round.contested))],
    )
    files.write_rows(round.place / "suites.jsonl", list(_suites(round, candidate)))

    reward = load_reward_model(round.place / "reward" / "model", round.model)
    shared = min(sum(len(row["completion_ids"]) for row in rows) for rows in said.values())
    figures = {
        name: {
            "reward": float(
                np.mean(
                    reward.score_ids(
                        [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows]
                    )
                )
            ),
            "length": float(np.mean([len(row["completion_ids"]) for row in rows])),
            "distinct_2": distinct_2([row["completion_ids"] for row in rows], shared),
        }
        for name, rows in said.items()
    }
    kl = kl_per_token(candidate, round.model, said[CANDIDATE])
    round.say(f"KL {kl:.2f} nats a token from the start")
    return {"kl_per_token": kl, "figures": figures}


def opponents(round: Round) -> tuple[str, ...]:
    """Whom a candidate is held against: its parent, and the start where that is another."""
    return (ANCHOR,) if round.standing.champion == 0 else (PARENT, ANCHOR)


def completions(round: Round, candidate: Model, prompts: Prompts, purpose: str) -> Rows:
    """One a prompt by each of the models. Each has draws of its own, so that none follows another's luck."""
    config, found = round.config, dict[str, list[Row]]()
    params = SamplingParams(max_new_tokens=config.max_new_tokens)
    for name in (CANDIDATE, *opponents(round)):
        found[name] = draw(
            candidate if name == CANDIDATE else round.model,
            prompts,
            1,
            params,
            (config.seed, purpose, name, round.number),
            console=round.console,
            version={CANDIDATE: "candidate", PARENT: round.standing.version, ANCHOR: round.start}[name],
            adapter=round.parent if name == PARENT else None,
        )
    return found


def _suites(round: Round, candidate: Model) -> Iterator[Row]:
    """Each suite's cases, scored from 0 to 1 for the candidate and for its parent."""
    for name, suite in round.config.suites.items():
        said = completions(round, candidate, round.suites[name], f"suite {name}")
        old = said[opponents(round)[0]]
        opened = open_for_texts(
            suite.scorer, near=round.model, dtype=round.model.trunk.dtype, device=round.model.trunk.device
        )
        both = [
            scored(
                opened.scorer,
                samples_of([(f"suite {name}, case {i}", row) for i, row in enumerate(rows, 1)], opened.base),
            ).scores
            for rows in (said[CANDIDATE], old)
        ]
        for ours, theirs, mine, parents in zip(*both, said[CANDIDATE], old, strict=True):
            if not (0 <= ours <= 1 and 0 <= theirs <= 1):
                raise UserError(
                    f"gives {ours:g} and {theirs:g}, not scores from 0 to 1", where=f"suite {name}",
                    fix="add `transform: {clip: [0, 1]}` to its scorer's YAML, say",
                )  # fmt: skip
            yield {
                "suite": name,
                "prompt": mine["prompt"],
                "candidate": mine["completion"],
                "parent": parents["completion"],
                "scores": [ours, theirs],
            }


# Gate ------------------------------------------------------------------------------------------------------


def gate(round: Round) -> Result:
    """The verdict on the candidate, prompt after prompt, blind: gate.jsonl has what was said of each."""
    config = round.config
    rows = read_rows(round.place / "contest.jsonl")
    rules = Rules(
        config.gate.alpha,
        config.gate.effect,
        config.gate.beta,
        len(rows),
        {name: suite.margin for name, suite in config.suites.items()},
    )
    against = opponents(round)
    test = Gate(rules, round.number + round.taken_back.tests, against)
    for case in read_rows(round.place / "suites.jsonl"):
        test.examine(case["suite"], *case["scores"])
    test.close_suites()

    said, unchanged = list[Row](), round.done("improve")["steps"] == 0
    for place, found in _judged(round, rows) if test.decision() == "go on" and not unchanged else ():
        test.judge(found)
        said.append({"place": place, **found})
        # Simulated judges cost nothing, and say how large a gain is; nobody else is asked for more than is needed.
        if config.gate.judges != "panel" and test.decision() != "go on":
            break
    files.write_rows(round.place / "gate.jsonl", said)
    verdict = test.verdict()
    decision = "publish" if verdict.decision == "publish" else "keep out"
    why = "the policy has taken no step" if unchanged else verdict.why

    lengths = {
        name: [
            (len(rows[one["place"]][CANDIDATE]["completion_ids"]), len(rows[one["place"]][name]["completion_ids"]))
            for one in said
        ]
        for name in against
    }  # fmt: skip
    result = {
        "decision": decision,
        "why": why,
        "prompts": verdict.prompts,
        "judges": config.gate.judges,
        "rates": dict(verdict.rates),
        "bounds": dict(verdict.bounds),
        "level": test.level,
        "intervals": {
            name: list(bootstrap([one[name] for one in said], seed=config.seed)) for name in against if said
        },
        "length_controlled": {
            name: length_controlled([one[name] for one in said], lengths[name]) for name in against if said
        },
    }
    shown = ", ".join(f"{verdict.rates[name]:.0%} against {name}" for name in against if said)
    round.say(f"gate: {decision} ({why}): {shown or 'nobody was asked'}")
    return result


def _judged(round: Round, rows: Sequence[Row]) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Of each prompt, against each opponent, the mean over judges of 1, 1/2 or 0."""
    judges = round.config.gate.judges
    if judges == "panel":
        yield from enumerate(_by_panel(round, rows))
    elif judges == "people":
        yield from _by_people(round, rows)
    else:
        yield from enumerate(_by_model(round, rows))


def _by_panel(round: Round, rows: Sequence[Row]) -> list[dict[str, float]]:
    """The three of the panel who judge nothing else."""
    names = (CANDIDATE, *opponents(round))
    seen = impressions(round, [row[name] for row in rows for name in names], "held-out completions")
    overall = panel.overall_scores(panel.judging_raters(round.config.seed), seen)
    of = {name: overall[:, place :: len(names)] for place, name in enumerate(names)}
    won = {
        name: np.mean(
            [
                outcomes(ours.tolist(), theirs.tolist(), panel.TIE_BELOW)
                for ours, theirs in zip(of[CANDIDATE], of[name], strict=True)
            ],
            axis=0,
        )
        for name in opponents(round)
    }
    return [{name: float(values[i]) for name, values in won.items()} for i in range(len(rows))]


def _by_model(round: Round, rows: Sequence[Row]) -> Iterator[dict[str, float]]:
    """A judge model, asked in both orders."""
    judge = judge_of(round.config.gate.judges, round.model.trunk.dtype, round.model.trunk.device)
    asked = [
        (as_text(prompt_from_json(row[CANDIDATE]["prompt"])), row[CANDIDATE]["completion"], row[name]["completion"])
        for row in rows
        for name in opponents(round)
    ]  # fmt: skip
    found = judge.compare(asked)
    for _ in rows:
        yield {name: _won(next(found).choice, 0) for name in opponents(round)}


def _won(choice: object, ours: int) -> float:
    """1 where the candidate is chosen, which stands at place `ours`, 0 where the other is, 1/2 where neither is."""
    return float(choice == ours) if choice in (0, 1) else 0.5


# People ----------------------------------------------------------------------------------------------------


def _by_people(round: Round, rows: Sequence[Row]) -> Iterator[tuple[int, dict[str, float]]]:
    """Named raters, of whom nothing is learned, in a project of their own; a part of the prompts at a time."""
    settings = round.config.gate
    task = Task(
        kind="comparison",
        strength=False,
        overlap=settings.overlap,
        random_share=0.0,
        gold_every=0,
        raters=tuple(settings.raters),
    )
    project = round.opened("gate", task)
    names = opponents(round)
    for first in range(0, len(rows), BATCH):
        part = range(first, min(first + BATCH, len(rows)))
        entries = {(i, name): _entry(round, rows[i], name) for i in part for name in names}
        asked = {key: entry for key, entry in entries.items() if entry.completions[0] != entry.completions[1]}
        Projects(round.store).add(project.id, list(asked.values()))
        items = {project.item(entry).id: key for key, entry in asked.items()}
        what = f"judges at the gate ({', '.join(settings.raters)})"
        wait_for(round, what, partial(_answered, round, items, settings.overlap))
        told = _answers(round, items)
        for i in part:
            yield i, {name: _share(told[i, name], rows[i], name) for name in names}


def _entry(round: Round, row: Row, name: str) -> Entry:
    """The two answers in an order that says nothing of whose they are."""
    first, second = _in_order(row, name)
    meta = {"loop gate": round.config.name, "against": name}
    return Entry(prompt_from_json(row[CANDIDATE]["prompt"]), (first, second), None, meta)


def _in_order(row: Row, name: str) -> list[str]:
    return sorted((row[CANDIDATE]["completion"], row[name]["completion"]))


Answers = dict[tuple[int, str], list[Event]]


def _answers(round: Round, items: Mapping[str, tuple[int, str]]) -> Answers:
    """Of each pair; who passed it over has answered, too."""
    found: Answers = defaultdict(list)
    for event in round.store.current():
        key = items.get(event.item or "")
        if key is not None and event.kind in ("comparison", "skip"):
            found[key].append(event)
    return found


def _answered(round: Round, items: Mapping[str, tuple[int, str]], overlap: int) -> tuple[Counter[str], int]:
    said = sum(min(len(said), overlap) for said in _answers(round, items).values())
    return Counter(judges=said), len(items) * overlap


def _share(said: Sequence[Event], row: Row, name: str) -> float:
    """The judges' mean; 1/2 where nobody has said anything."""
    ours = _in_order(row, name).index(row[CANDIDATE]["completion"])
    won = [_won(event.payload["choice"], ours) for event in said if event.kind == "comparison"]
    return float(np.mean(won)) if won else 0.5
