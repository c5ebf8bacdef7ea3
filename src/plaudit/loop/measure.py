"""The last transition of a round: before and after on held-out prompts, blind, beside two baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn.utils.rnn import pad_sequence

from plaudit import files
from plaudit.data.collate import micro_batches, pack
from plaudit.evaluation.metrics import bootstrap, distinct_2
from plaudit.feedback import panel, terminal
from plaudit.feedback.events import Item
from plaudit.feedback.panel import Impression
from plaudit.loop import drawing, stages
from plaudit.loop.stages import Result, Stage
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.reward.model import RewardModel, load_reward_model

CONSTANT = "That is wonderful, I am so happy for you, what a great and lovely day, I love it!"
"""The baseline that says the same to everybody: as cheerful as the judges could wish."""
CANDIDATES = 4
SETS = ("before", "after", "best_of_4", "constant")
Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]


def evaluate(stage: Stage) -> Result:
    """The exported model, as reloaded, against the starting model -> evaluation.jsonl and the round's figures."""
    stage.say("measuring on held-out prompts")
    prompts = stage.splits["heldout"]
    after_model = load_model(
        str(stage.place / "ppo" / "model"), stage.model.trunk.dtype, stage.model.trunk.device
    )
    scorer = load_reward_model(stage.place / "reward" / "model", stage.model)

    # 1. Four completions a prompt: the starting model's, the improved one's, its best of four, the constant.
    start = start_rows(stage)
    after = stages.draw(stage, prompts, 1, "after", model=after_model)
    before = start[:: CANDIDATES + 1]
    rows = {"before": before, "after": after}
    rows["best_of_4"] = best(start, scorer)
    tokens = stage.model.tokenizer.encode(CONSTANT)[: stage.config.max_new_tokens]
    rows["constant"] = [row | {"completion": CONSTANT, "completion_ids": tokens} for row in before]

    # 2. What they are worth, and the improved model against the start.
    judged = judge(stage, {name: rows[name] for name in SETS}, scorer)
    policy, _ = against_start(stage, judged, kl=kl_per_token(after_model, stage.model, after))
    if stage.config.raters == "me":
        policy |= _ask_me(stage, before, after)
    files.write_rows(
        stage.place / "evaluation.jsonl",
        [
            {"prompt": before[p]["prompt"]}
            | {name: rows[name][p]["completion"] for name in SETS}
            | {f"{name}_overall": float(judged.overall[name][:, p].mean()) for name in SETS}
            for p in range(len(prompts))
        ],
    )
    if policy["win_rate"] is not None:
        stage.say(
            f"wins {policy['win_rate']:.0%} against the start, KL {policy['kl_per_token']:.2f} nats a token"
        )
    return {"policy": policy, "baselines": judged.figures}


@dataclass(frozen=True, slots=True)
class Judged:
    """Sets of completions, each one a held-out prompt, by name; one of them is "before", the starting model's.

    overall, unseen: by all judges, and with the words alone that no training rater knows, [judges, prompts] in 0 to 1.
    figures: means of each set.
    """

    rows: dict[str, Rows]
    overall: dict[str, Floats]
    unseen: dict[str, Floats]
    figures: dict[str, Result]


def judge(stage: Stage, rows: dict[str, Rows], scorer: RewardModel) -> Judged:
    """How the starting model sees the sets, and what the judges say, who took no part in the training."""
    names = list(rows)
    interleaved = [rows[name][p] for p in range(len(rows["before"])) for name in names]
    views = stages.views_of(stage, interleaved, "held-out completions")
    band = stages.band_of(stage)
    relevance, fluency = views.relevance(band), views.fluency(band)
    seen = [
        Impression(row["completion"], float(r), float(f))
        for row, r, f in zip(interleaved, relevance, fluency, strict=True)
    ]
    seed = stage.config.seed
    verdict = panel.criterion_scores(panel.judging_raters(seed), seen)
    unseen = panel.criterion_scores(panel.judging_raters(seed, unseen_only=True), seen)["overall"]
    rewards = scorer.score_ids(
        [row["prompt_ids"] for row in interleaved], [row["completion_ids"] for row in interleaved]
    )

    def of(values: Any, name: str) -> Floats:
        return np.asarray(values, dtype=np.float64)[..., names.index(name) :: len(names)]

    overall = {name: of(verdict["overall"], name) for name in names}
    figures = {
        name: {
            **{k: float(of(v, name).mean()) for k, v in verdict.items()},
            "reward": float(of(rewards, name).mean()),
            "length": float(np.mean([len(row["completion_ids"]) for row in rows[name]])),
            "perplexity": float(np.exp(np.average(of(views.surprise, name), weights=of(views.tokens, name)))),
            "win_rate": win_rate(overall[name], overall["before"])[0],
        }
        for name in names
    }
    return Judged(rows, overall, {name: of(unseen, name) for name in names}, figures)


def against_start(stage: Stage, judged: Judged, *, kl: float) -> tuple[Result, list[float]]:
    """The figures of the set "after" against "before", and its wins by prompt. kl: nats a token."""
    rows, figures = judged.rows, judged.figures
    wins, per_prompt = win_rate(judged.overall["after"], judged.overall["before"])
    unseen, _ = win_rate(judged.unseen["after"], judged.unseen["before"])
    shared = min(sum(len(row["completion_ids"]) for row in rows[name]) for name in ("before", "after"))
    distinct = {
        n: distinct_2([row["completion_ids"] for row in rows[n]], shared) for n in ("before", "after")
    }
    policy: Result = {
        "judges": "panel" if stage.config.raters == "panel" else "me",
        "win_rate": wins,
        "win_rate_ci95": list(bootstrap(per_prompt, seed=stage.config.seed)),
        "win_rate_unseen_words": unseen,
        "overall_before": figures["before"]["overall"],
        "overall_after": figures["after"]["overall"],
        "relevance_before": figures["before"]["relevance"],
        "relevance_after": figures["after"]["relevance"],
        "kl_per_token": kl,
        "distinct2_ratio": distinct["after"] / max(distinct["before"], 1e-9),
        "perplexity_ratio": figures["after"]["perplexity"] / figures["before"]["perplexity"],
        "reward_before": figures["before"]["reward"],
        "reward_after": figures["after"]["reward"],
    }
    return policy, per_prompt


def start_rows(stage: Stage) -> list[dict[str, Any]]:
    """The starting model's samples of the held-out prompts: one to compare, then the candidates; drawn once."""
    path = stage.directory / "rounds" / "1" / "start.jsonl"
    if not path.exists():
        files.write_rows(path, stages.draw(stage, stage.splits["heldout"], CANDIDATES + 1, "start"))
    return drawing.read_rows(path)


def best(start: Sequence[dict[str, Any]], scorer: RewardModel) -> list[dict[str, Any]]:
    """Of each prompt's candidates the one that the reward model likes best."""
    scores = scorer.score_ids([row["prompt_ids"] for row in start], [row["completion_ids"] for row in start])
    chosen = []
    for first in range(0, len(start), CANDIDATES + 1):
        candidates = range(first + 1, first + 1 + CANDIDATES)
        chosen.append(start[max(candidates, key=lambda i: scores[i])])
    return chosen


def win_rate(after: Floats, before: Floats) -> tuple[float, list[float]]:
    """Wins + ties / 2 of the first over the second, overall and by prompt; both [judges, prompts], 0 to 1.

    A judge sees no difference under `panel.TIE_BELOW`.
    """
    difference = after - before
    won = np.where(np.abs(difference) < panel.TIE_BELOW, 0.5, difference > 0)
    return float(won.mean()), won.mean(0).tolist()


def kl_per_token(policy: Model | None, start: Model, rows: Sequence[dict[str, Any]]) -> float:
    """Mean k1, log policy - log start, over the tokens of the policy's own samples (temperature 1), nats.

    policy: None takes its log-probabilities from the rows, as they were drawn: a steered policy is no model alone.
    """
    packed = pack(
        [row["prompt_ids"] for row in rows],
        [row["completion_ids"] for row in rows],
        device=start.trunk.device,
    )
    total = 0.0
    with torch.no_grad():
        for index in micro_batches(packed, 4096):
            part, own = packed.take(index)
            if policy is None:
                drawn = [torch.tensor(rows[int(i)]["logprobs"], dtype=torch.float64) for i in own]
                mine = pad_sequence(drawn, batch_first=True).to(part.mask.device)
            else:
                mine = token_logprobs(Branch(policy.trunk), part).logprobs
            gap = mine - token_logprobs(Branch(start.trunk), part).logprobs
            total += float(gap[part.mask].double().sum())
    return total / float(packed.mask.sum())


def _ask_me(stage: Stage, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> Result:
    """The person compares start and improved model blind; wins + ties / 2, None without an answer."""
    items = [
        Item(
            prompt=prompt,
            completions=(old["completion"], new["completion"]),
            meta={"round": stage.number, "purpose": "blind"},
        )
        for prompt, old, new in zip(stage.splits["heldout"], before, after, strict=True)
        if old["completion"] != new["completion"]
    ][: stage.config.blind_answers]
    stage.store.add_items(items)
    stage.say(f"last: compare {len(items)} pairs blind, one of each by the improved model")
    terminal.compare_pairs(
        stage.store, [item.id for item in items], "me", stage.ask, Console(), key=(stage.config.seed, "blind")
    )
    wanted = {item.id for item in items}
    said = [e for e in stage.store.current() if e.item in wanted and e.kind == "comparison"]
    won = [1.0 if e.payload["choice"] == 1 else 0.0 if e.payload["choice"] == 0 else 0.5 for e in said]
    if not won:
        return {"win_rate": None, "win_rate_ci95": None, "win_rate_unseen_words": None, "blind_answers": 0}
    return {
        "win_rate": float(np.mean(won)),
        "win_rate_ci95": list(bootstrap(won, seed=stage.config.seed)),
        "win_rate_unseen_words": None,
        "blind_answers": len(won),
    }
