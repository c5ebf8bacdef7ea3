"""Record 50 steps of the reward_model recipe, twice, for tests/recipes/test_reward_golden.py.

    python tests/recipes/goldens/record_reward_tiny.py

By an implementation that shares nothing with Plaudit's but the first weights and the order of prompts: transformers'
tokenizer and Llama and peft's LoRA in float64, one completion at a time without padding or packing, Bradley and Terry's
loss with a margin, Plackett and Luce's, and the ratings' written out. Its numbers, not the recipe's, are the golden:
every step's, and the scores of all completions after the last, normalised. Peers at the recording: transformers 5.23.0,
peft 0.21.2, torch 2.13.0.
"""

from __future__ import annotations

import json
import math
import tempfile
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
}  # fmt: skip
RECORDS = [*COMPARISONS, *RATINGS]


class Learner:
    """A score of each completion, one at a time."""

    def __init__(self, config: Any, directory: Path) -> None:
        from transformers import AutoTokenizer

        self.config = config
        bare = load_model("tiny", torch.float64)
        self.tokenizer = AutoTokenizer.from_pretrained(str(bare.directory))
        self.model, self.leave = reading_model(config, "reward", directory)
        head = ScalarHead(bare.trunk.shape.width, dtype=torch.float64)
        head.initialise(torch_seed(config.seed, "reward head"))
        self.weight = head.weight.detach().clone().requires_grad_(True)
        self.bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.trained = [*(p for p in self.model.parameters() if p.requires_grad), self.weight, self.bias]
        self.optimizer = torch.optim.Adam(self.trained, lr=1.0, eps=1e-5)

    def score(self, prompt: Any, text: str) -> Tensor:
        if isinstance(prompt, str):
            before = self.tokenizer(prompt)["input_ids"]
        else:
            rendered = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            before = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        after = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        state = pooled_state(self.model, before, after, self.leave, self.config.pool)
        return (state * self.weight).sum() + self.bias

    def step(self, records: list[dict[str, Any]], number: int, steps: int) -> dict[str, float]:
        c, compared, rated = self.config, list[Tensor](), list[Tensor]()
        right, decided = 0, 0
        for record in records:
            prompt = record["prompt"]
            scores = [self.score(prompt, text) for text in texts_of(record)]
            if "scores" in record:
                each = record["scores"].values()
                rated.append(cross_entropy(scores[0], sum(each) / len(each)))
                continue
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


def learn(config: Any, directory: Path) -> dict[str, Any]:
    """Every step, and the scores after the last: of mean 0 and deviation 1 over all that was learned from."""
    learner = Learner(config, directory)
    training, held = split(RECORDS, config.seed, config.heldout)
    orders = [
        rng(config.seed, "reward order", epoch).permutation(len(training)) for epoch in range(config.epochs)
    ]
    every = [training[i] for order in orders for i in order]  # a batch may end one epoch and begin the next
    batches = [
        every[at : at + config.prompts_per_step] for at in range(0, len(every), config.prompts_per_step)
    ]
    steps = [
        learner.step([r for k in batch for r in RECORDS if key(r["prompt"]) == k], n, len(batches))
        for n, batch in enumerate(batches)
    ]
    raw: dict[tuple[str, str], float] = {}
    with torch.no_grad():
        for record in RECORDS:
            for text in texts_of(record):
                raw[key(record["prompt"]), text] = float(learner.score(record["prompt"], text))
    known = [score for (k, _), score in raw.items() if k in training]
    mean = math.fsum(known) / len(known)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in known) / len(known))
    gaps = [
        (raw[key(r["prompt"]), r["completions"][0]] - raw[key(r["prompt"]), r["completions"][1]])
        * (1 - 2 * r["choice"])
        for r in RECORDS
        if key(r["prompt"]) in held and r.get("choice") in (0, 1)
    ]
    scores = [[json.loads(k), text, (score - mean) / spread] for (k, text), score in raw.items()]
    return {"steps": steps, "scores": scores, "heldout_accuracy": sum(gap > 0 for gap in gaps) / len(gaps)}


def main() -> None:
    golden: dict[str, Any] = {"records": RECORDS, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = place / "judgements.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
        for name, settings in RUNS.items():
            config = reward_model.Config.model_validate(settings | {"data": [str(data)]})
            run = learn(config, place / f"{name} peer")
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
            golden["runs"][name] = {"settings": settings, **run}
    (HERE / "reward_tiny.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
