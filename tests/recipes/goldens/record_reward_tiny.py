"""Record 50 steps of the reward_model recipe, four times, for tests/recipes/test_reward_golden.py.

    python tests/recipes/goldens/record_reward_tiny.py [NAME ...]

By an implementation that shares nothing with Plaudit's but the first weights and the order of prompts: transformers'
tokenizer and Llama and peft's LoRA in float64, one completion at a time without padding or packing, Bradley and Terry's
loss with a margin, Plackett and Luce's, and the ratings' (as cross-entropy, by criterion, as levels between cut-points
that are learned) written out. Its numbers, not the recipe's, are the golden: every step's, and the scores of all
completions after the last, normalised. Peers at the recording: transformers 5.23.0, peft 0.21.2, torch 2.13.0.

With raters: aware nothing is recorded: before the first step their habits are fitted in alternation with heads on
left-out folds, all of which a peer would have to copy line by line.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peer import pooled_state, reading_model, take_step
from record_preference_tiny import COMPARISONS, RATINGS, key, split
from torch import Tensor

from plaudit.models.branch import ScalarHead
from plaudit.models.load import load_model
from plaudit.randomness import rng, torch_seed
from plaudit.recipes import reward_model
from plaudit.reward.criteria import CriteriaHead
from plaudit.reward.model import load_reward_model
from plaudit.reward.score import ids_of

HERE = Path(__file__).parent
COMMON: dict[str, Any] = {
    "model": "tiny", "seed": 3, "heldout": 0.2, "epochs": 9, "prompts_per_step": 2, "precision": "float64",
    "threads": 1,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "pairs": COMMON
    | {
        "learning_rate": 8e-3, "margin": 0.9, "rating_weight": 0.7, "max_grad_norm": 2.0,
        "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    },
    "rankings": COMMON
    | {
        "learning_rate": 1e-2, "comparison": "plackett_luce", "rating_weight": 0.0, "pool": "mean", "exit": 0.6,
        "max_grad_norm": 1.0, "adapter": {"rank": 4, "alpha": 8.0, "blocks": 2},
    },
    "levels": COMMON
    | {
        "learning_rate": 8e-3, "rating": "ordinal", "rating_weight": 0.8, "max_grad_norm": 1.2,
        "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    },
    "criteria": COMMON
    | {
        "learning_rate": 8e-3, "criteria": {"tone": 0.4, "help": 0.8}, "rating_weight": 1.5, "max_grad_norm": 2.0,
        "pool": "mean", "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    },
}  # fmt: skip
RECORDS = [*COMPARISONS, *RATINGS]
LEVELLED = [
    {"prompt": prompt, "completion": text, "scores": {"overall": level}}
    for prompt, text, level in (
        ("do you like music", "very much", 1.0), ("do you like music", "no", 0.0), ("I am tired", "work", 0.25),
        ("good morning", "hello and welcome", 1.0), ("good morning", "what a fine day", 0.75),
        ("tell me more", "no", 0.0), ("coffee or tea", "tea", 0.25), ("how much is it", "ten", 0.75),
        ("is it late", "who knows", 0.25), ("can we talk", "never", 0.0), ("what is wrong", "nothing", 0.25),
        ("where is the cat", "in the garden", 1.0),
    )
]  # fmt: skip
BY_CRITERION = [
    {"prompt": prompt, "completion": text, "scores": scores}
    for prompt, text, scores in (
        ("do you like music", "very much", {"tone": 0.9, "help": 0.6}), ("do you like music", "no", {"tone": 0.1}),
        ("I am tired", "work", {"tone": 0.2, "help": 0.1, "overall": 0.3}), ("good morning", "go away", {"tone": 0.0}),
        ("tell me more", "yes", {"help": 0.3, "overall": 0.4}), ("coffee or tea", "tea", {"overall": 0.5}),
        ("how much is it", "ten", {"help": 1.0, "style": 0.2}), ("is it late", "who knows", {"tone": 0.4}),
        ("where is the cat", "gone", {"help": 0.2, "tone": 0.6}), ("what is wrong", "nothing", {"help": 0.1}),
    )
]  # fmt: skip
"""Of "style" nobody asks; an overall rating is of the criteria's weighted sum."""
RATED = {"levels": LEVELLED, "criteria": BY_CRITERION}
HABITS_RATE, GAP_DEVIATION = 0.02, 2.0
"""Of the cut-points: the rate at which they are learned, and how far the logarithms of their gaps are expected to lie
from 0."""


class Learner:
    """A score of each completion, one at a time."""

    def __init__(self, config: Any, records: list[dict[str, Any]], directory: Path) -> None:
        from transformers import AutoTokenizer

        self.config = config
        bare = load_model("tiny", torch.float64)
        self.tokenizer = AutoTokenizer.from_pretrained(str(bare.directory))
        self.model, self.leave = reading_model(config, "reward", directory)
        width, named = bare.trunk.shape.width, config.criteria
        head = (
            CriteriaHead(width, named, dtype=torch.float64)
            if named
            else ScalarHead(width, dtype=torch.float64)
        )
        head.initialise(torch_seed(config.seed, "reward head"))
        self.weight = head.weight.detach().clone().reshape(-1, width).requires_grad_(True)
        self.bias = torch.zeros(len(self.weight), dtype=torch.float64, requires_grad=True)
        self.shares = torch.tensor([*named.values()] or [1.0], dtype=torch.float64)
        self.trained = [*(p for p in self.model.parameters() if p.requires_grad), self.weight, self.bias]
        self.optimizer = torch.optim.Adam(self.trained, lr=1.0, eps=1e-5)
        if config.rating == "ordinal":
            self.begin_levels(records)

    def begin_levels(self, records: list[dict[str, Any]]) -> None:
        """A level for each value that was given. The cuts begin where they part the ratings as often as they were."""
        given = [level for record in records if "scores" in record for _, level in self.said(record)]
        self.levels = sorted(set(given))
        share, cuts = 0.0, list[float]()
        for level in self.levels[:-1]:
            share += (given.count(level) + 0.5) / (len(given) + 0.5 * len(self.levels))
            cuts.append(math.log(share / (1 - share)))
        gaps = [math.log(max(b - a, 1e-2)) for a, b in pairwise(cuts)]
        self.gaps = torch.nn.Parameter(torch.tensor(gaps, dtype=torch.float64))
        self.habits = torch.optim.Adam([self.gaps], lr=1.0, eps=1e-5)
        compared = [r.get("completions", [0]) for r in records if "scores" not in r]
        judged = sum(len(texts) * (len(texts) - 1) // 2 for texts in compared) + len(given)
        self.nat = (1 + self.config.rating_weight) / judged

    def said(self, record: dict[str, Any]) -> list[tuple[int | None, float]]:
        """(which criterion, how it was rated); None: the whole."""
        scores, names = record["scores"], list(self.config.criteria)
        if not names:
            return [(None, scores.get("overall", sum(scores.values()) / len(scores)))]
        found: list[tuple[int | None, float]] = [(names.index(n), scores[n]) for n in names if n in scores]
        return found + ([(None, scores["overall"])] if "overall" in scores else [])

    def rated(self, each: Tensor, record: dict[str, Any]) -> list[Tensor]:
        """What each rating of the record costs."""
        found = []
        for criterion, level in self.said(record):
            own = (each * self.shares).sum() if criterion is None else each[criterion]
            if self.config.rating == "regression":
                found.append(cross_entropy(own, level))
                continue
            ends = [torch.zeros((), dtype=torch.float64)]
            for gap in self.gaps:
                ends.append(ends[-1] + torch.exp(gap))
            middle, k = torch.stack(ends).mean(), self.levels.index(level)
            reached = [
                torch.ones(()),
                *(torch.sigmoid(own - (end - middle)) for end in ends),
                torch.zeros(()),
            ]
            found.append(-torch.log(reached[k] - reached[k + 1]))
        return found

    def each(self, prompt: Any, text: str) -> Tensor:
        if isinstance(prompt, str):
            before = self.tokenizer(prompt)["input_ids"]
        else:
            rendered = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            before = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        after = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        state = pooled_state(self.model, before, after, self.leave, self.config.pool)
        return self.weight @ state + self.bias

    def score(self, prompt: Any, text: str) -> Tensor:
        return (self.each(prompt, text) * self.shares).sum()

    def step(self, records: list[dict[str, Any]], number: int, steps: int) -> dict[str, float]:
        c, compared, rated = self.config, list[Tensor](), list[Tensor]()
        right, decided = 0, 0
        for record in records:
            prompt = record["prompt"]
            if "scores" in record:
                rated += self.rated(self.each(prompt, record["completion"]), record)
                continue
            scores = [self.score(prompt, text) for text in texts_of(record)]
            if "ranking" in record:
                order = [scores[i] for i in record["ranking"]]
                pairs = [(a, b, 1.0) for at, a in enumerate(order) for b in order[at + 1 :]]
                if c.comparison == "plackett_luce":
                    compared.append(-log_chance(order))
                else:
                    compared += [ahead(a, b, share, 0.0) for a, b, share in pairs]
            else:
                share = {0: 1.0, 1: 0.0}.get(record["choice"], 0.5)
                margin = c.margin * (record.get("strength", 1) - 1) / 3 if share != 0.5 else 0.0
                pairs = [(scores[0], scores[1], share)]
                compared.append(ahead(scores[0], scores[1], share, margin))
            for a, b, share in pairs:
                decided += share != 0.5
                right += bool(a > b) if share == 1 else bool(b > a) if share == 0 else False
        zero = torch.zeros((), dtype=torch.float64)
        rating_loss = torch.stack(rated).mean() if rated and c.rating_weight else zero
        loss = (torch.stack(compared).mean() if compared else zero) + c.rating_weight * rating_loss
        row = {"loss": float(loss.detach()), "rating_loss": float(rating_loss.detach())}
        row |= {"accuracy": right / decided} if decided else {}
        if loss.requires_grad:
            torch.autograd.backward(loss)
        rate = c.learning_rate * (steps - number) / steps
        norm = take_step(self.optimizer, self.trained, rate, c.max_grad_norm)
        if c.rating == "ordinal":
            torch.autograd.backward(self.nat * (self.gaps / GAP_DEVIATION).square().sum() / 2)
            take_step(self.habits, [self.gaps], HABITS_RATE * (steps - number) / steps, c.max_grad_norm)
        return row | {"grad_norm": norm, "learning_rate": rate}


def ahead(first: Tensor, second: Tensor, share: float, margin: float) -> Tensor:
    """Bradley and Terry's: the share of raters who put the first ahead, who is to be so by a margin."""
    one, other = torch.sigmoid(first - second - margin), torch.sigmoid(second - first - margin)
    return -share * torch.log(one) - (1 - share) * torch.log(other)


def log_chance(order: list[Tensor]) -> Tensor:
    """Plackett and Luce's: the best is chosen from all, the next from the rest."""
    found = torch.zeros((), dtype=torch.float64)
    for at, score in enumerate(order):
        found = found + torch.log(torch.exp(score) / torch.stack([torch.exp(s) for s in order[at:]]).sum())
    return found


def cross_entropy(score: Tensor, rating: float) -> Tensor:
    return -rating * torch.log(torch.sigmoid(score)) - (1 - rating) * torch.log(torch.sigmoid(-score))


def texts_of(record: dict[str, Any]) -> list[str]:
    return record.get("completions") or [record["completion"]]


def learn(config: Any, records: list[dict[str, Any]], directory: Path) -> dict[str, Any]:
    """Every step, and the scores after the last: of mean 0 and deviation 1 over all that was learned from."""
    training, held = split(records, config.seed, config.heldout)
    learner = Learner(config, [r for r in records if key(r["prompt"]) in training], directory)
    orders = [
        rng(config.seed, "reward order", epoch).permutation(len(training)) for epoch in range(config.epochs)
    ]
    every = [training[i] for order in orders for i in order]  # a batch may end one epoch and begin the next
    batches = [
        every[at : at + config.prompts_per_step] for at in range(0, len(every), config.prompts_per_step)
    ]
    steps = [
        learner.step([r for k in batch for r in records if key(r["prompt"]) == k], n, len(batches))
        for n, batch in enumerate(batches)
    ]
    raw: dict[tuple[str, str], float] = {}
    with torch.no_grad():
        for record in records:
            for text in texts_of(record):
                raw[key(record["prompt"]), text] = float(learner.score(record["prompt"], text))
    known = [score for (k, _), score in raw.items() if k in training]
    mean = math.fsum(known) / len(known)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in known) / len(known))
    gaps = [
        (raw[key(r["prompt"]), r["completions"][0]] - raw[key(r["prompt"]), r["completions"][1]])
        * (1 - 2 * r["choice"])
        for r in records
        if key(r["prompt"]) in held and r.get("choice") in (0, 1)
    ]
    scores = [[json.loads(k), text, (score - mean) / spread] for (k, text), score in raw.items()]
    return {"steps": steps, "scores": scores, "heldout_accuracy": sum(gap > 0 for gap in gaps) / len(gaps)}


def main() -> None:
    golden: dict[str, Any] = {"comparisons": COMPARISONS, "ratings": RATINGS, "runs": {}}
    if sys.argv[1:]:
        golden["runs"] = json.loads((HERE / "reward_tiny.json").read_text())["runs"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = place / "judgements.jsonl"
        for name in sys.argv[1:] or RUNS:
            settings = RUNS[name]
            records = [*COMPARISONS, *RATED[name]] if name in RATED else RECORDS
            data.write_text("".join(json.dumps(row) + "\n" for row in records))
            config = reward_model.Config.model_validate(settings | {"data": [str(data)]})
            run = learn(config, records, place / f"{name} peer")
            summary = reward_model.run(config, place / name)
            ours = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
            both = zip(ours, run["steps"], strict=True)
            far = max((abs(a[n] - b[n]), n, a["step"]) for a, b in both for n in b)
            scorer = load_reward_model(place / name / "model", load_model("tiny", torch.float64))
            ids = [ids_of({"prompt": p, "completion": text}, "", scorer) for p, text, _ in run["scores"]]
            found = scorer.score_ids([p for p, _ in ids], [c for _, c in ids])
            off = max(abs(a - b) for a, (_, _, b) in zip(found, run["scores"], strict=True))
            print(f"{name}: {len(ours)} steps; the recipe is off by at most {far}, its scores by {off}")
            print(f"  held out: {run['heldout_accuracy']}, the recipe's {summary['heldout_accuracy']}")
            own = {"ratings": RATED[name]} if name in RATED else {}
            golden["runs"][name] = {"settings": settings, **own, **run}
    (HERE / "reward_tiny.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
