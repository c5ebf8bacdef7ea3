"""The last transition of a round: before and after on held-out prompts, blind, beside two baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from plaudit.data.collate import micro_batches, pack
from plaudit.evaluation.metrics import bootstrap, distinct_2
from plaudit.feedback import panel, terminal
from plaudit.feedback.events import Item
from plaudit.feedback.panel import Impression
from plaudit.loop import stages
from plaudit.loop.stages import Result, Stage
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.reward.model import RewardModel, load_reward_model

CONSTANT = "That is wonderful, I am so happy for you, what a great and lovely day, I love it!"
"""The baseline that says the same to everybody: as cheerful as the judges could wish."""
CANDIDATES = 4
SETS = ("before", "after", "best_of_4", "constant")
Floats = NDArray[np.float64]


def evaluate(stage: Stage) -> Result:
    """The exported model, as reloaded, against the starting model -> evaluation.jsonl and the round's figures."""
    stage.say("measuring on held-out prompts")
    prompts = stage.splits["heldout"]
    after_model = load_model(
        str(stage.place / "ppo" / "model"), stage.model.trunk.dtype, stage.model.trunk.device
    )
    scorer = load_reward_model(stage.place / "reward" / "model", stage.model)

    # 1. Four completions a prompt: the starting model's, the improved one's, its best of four, the constant.
    start = _start_rows(stage)
    after = stages.draw(stage, prompts, 1, "after", model=after_model)
    before = start[:: CANDIDATES + 1]
    rows = {"before": before, "after": after}
    rows["best_of_4"] = _best(start, scorer)
    tokens = stage.model.tokenizer.encode(CONSTANT)[: stage.config.max_new_tokens]
    rows["constant"] = [row | {"completion": CONSTANT, "completion_ids": tokens} for row in before]

    # 2. How the starting model sees them, and what the judges say, who took no part in the training.
    interleaved = [rows[name][p] for p in range(len(prompts)) for name in SETS]
    views = stages.views_of(stage, interleaved, "held-out completions")
    band = stages.band_of(stage)
    relevance, fluency = views.relevance(band), views.fluency(band)
    seen = [
        Impression(row["completion"], float(r), float(f))
        for row, r, f in zip(interleaved, relevance, fluency, strict=True)
    ]
    verdict = {
        "all": panel.criterion_scores(panel.judging_raters(stage.config.seed), seen),
        "unseen": panel.criterion_scores(panel.judging_raters(stage.config.seed, unseen_only=True), seen),
    }
    rewards = scorer.score_ids(
        [row["prompt_ids"] for row in interleaved], [row["completion_ids"] for row in interleaved]
    )

    # 3. Figures of each set, and of the improved model against the start.
    def of(values: Any, name: str) -> Floats:
        return np.asarray(values, dtype=np.float64)[..., SETS.index(name) :: len(SETS)]

    figures = {
        name: {
            **{k: float(of(v, name).mean()) for k, v in verdict["all"].items()},
            "reward": float(of(rewards, name).mean()),
            "length": float(np.mean([len(row["completion_ids"]) for row in rows[name]])),
            "perplexity": float(np.exp(np.average(of(views.surprise, name), weights=of(views.tokens, name)))),
            "win_rate": win_rate(
                of(verdict["all"]["overall"], name), of(verdict["all"]["overall"], "before")
            )[0],
        }
        for name in SETS
    }
    wins, per_prompt = win_rate(
        of(verdict["all"]["overall"], "after"), of(verdict["all"]["overall"], "before")
    )
    unseen, _ = win_rate(
        of(verdict["unseen"]["overall"], "after"), of(verdict["unseen"]["overall"], "before")
    )
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
        "kl_per_token": kl_per_token(after_model, stage.model, after),
        "distinct2_ratio": distinct["after"] / max(distinct["before"], 1e-9),
        "perplexity_ratio": figures["after"]["perplexity"] / figures["before"]["perplexity"],
        "reward_before": figures["before"]["reward"],
        "reward_after": figures["after"]["reward"],
    }
    if stage.config.raters == "me":
        policy |= _ask_me(stage, before, after)
    stages.write_rows(
        stage.place / "evaluation.jsonl",
        [
            {"prompt": before[p]["prompt"]}
            | {name: rows[name][p]["completion"] for name in SETS}
            | {f"{name}_overall": float(of(verdict["all"]["overall"], name)[:, p].mean()) for name in SETS}
            for p in range(len(prompts))
        ],
    )
    if policy["win_rate"] is not None:
        stage.say(
            f"wins {policy['win_rate']:.0%} against the start, KL {policy['kl_per_token']:.2f} nats a token"
        )
    return {"policy": policy, "baselines": {name: figures[name] for name in SETS}}


def _start_rows(stage: Stage) -> list[dict[str, Any]]:
    """The starting model's samples of the held-out prompts: one to compare, then the candidates; drawn once."""
    path = stage.directory / "rounds" / "1" / "start.jsonl"
    if not path.exists():
        stages.write_rows(path, stages.draw(stage, stage.splits["heldout"], CANDIDATES + 1, "start"))
    return stages.read_rows(path)


def _best(start: Sequence[dict[str, Any]], scorer: RewardModel) -> list[dict[str, Any]]:
    """Of each prompt's candidates the one that the reward model likes best."""
    scores = scorer.score_ids([row["prompt_ids"] for row in start], [row["completion_ids"] for row in start])
    best = []
    for first in range(0, len(start), CANDIDATES + 1):
        candidates = range(first + 1, first + 1 + CANDIDATES)
        best.append(start[max(candidates, key=lambda i: scores[i])])
    return best


def win_rate(after: Floats, before: Floats) -> tuple[float, list[float]]:
    """Wins + ties / 2 of the first over the second, overall and by prompt; both [judges, prompts], 0 to 1.

    A judge sees no difference under `panel.TIE_BELOW`.
    """
    difference = after - before
    won = np.where(np.abs(difference) < panel.TIE_BELOW, 0.5, difference > 0)
    return float(won.mean()), won.mean(0).tolist()


def kl_per_token(policy: Model, start: Model, rows: Sequence[dict[str, Any]]) -> float:
    """Mean k1, log policy - log start, over the tokens of the policy's own samples (temperature 1), nats."""
    packed = pack(
        [row["prompt_ids"] for row in rows],
        [row["completion_ids"] for row in rows],
        device=start.trunk.device,
    )
    total = 0.0
    with torch.no_grad():
        for index in micro_batches(packed, 4096):
            part, _ = packed.take(index)
            gap = (
                token_logprobs(Branch(policy.trunk), part).logprobs
                - token_logprobs(Branch(start.trunk), part).logprobs
            )
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
