"""Record 50 steps of the bandit recipe, twice, for tests/recipes/test_bandit_golden.py.

    python tests/recipes/goldens/record_bandit_tiny.py

Once from a log, with an adapter; once choosing labels round after round, the head alone. By an implementation that
shares nothing with Plaudit's but the adapter's first weights and the keys of what is drawn: transformers' Llama and
peft's LoRA in float64, one text at a time, the head, its scale, the policy, the loss and the choices written out. Its
numbers, not the recipe's, are the golden. Peers at the recording: transformers 5.23.0, peft 0.21.2, torch 2.13.0.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from peer import pooled_state, reading_model, take_step
from test_bandit import RIGHT, TEXTS, logged

from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.recipes import bandit

HERE = Path(__file__).parent
COMMON: dict[str, Any] = {
    "model": "tiny", "heldout": 0.2, "seed": 7, "precision": "float64", "threads": 1,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "log": COMMON
    | {
        "epochs": 10, "batch_size": 10, "learning_rate": 2e-2, "weight_decay": 0.1, "max_grad_norm": 2.5, "exit": 0.8,
        "pool": "last",
        "adapter": {"rank": 4, "alpha": 8.0, "blocks": 2},
    },
    "choosing": COMMON
    | {
        "data": [], "labels": ["good", "bad", "neither"], "reward": "test_bandit:rewarded", "rounds": 10,
        "contexts_per_round": 12, "steps_per_round": 5, "policy": "softmax", "temperature": 0.2, "batch_size": 9,
        "learning_rate": 2e-2, "max_grad_norm": 0.9, "exit": 0.5,
    },
}  # fmt: skip


class Learner:
    """Q of each label, a text at a time."""

    def __init__(self, config: Any, directory: Path, labels: list[str], texts: list[str]) -> None:
        from transformers import AutoTokenizer

        self.config, self.labels = config, labels
        tokenizer = AutoTokenizer.from_pretrained(str(load_model("tiny", torch.float64).directory))
        self.start = tokenizer.eos_token_id
        self.ids = {text: tokenizer(text)["input_ids"] for text in texts}
        self.model, self.leave = reading_model(config, "bandit", directory)
        first = torch.stack([self.state(text).detach() for text in texts])
        self.centre = first.mean(0)
        self.scale = ((first - self.centre) ** 2).mean(0).sqrt()
        self.weight = torch.zeros(len(labels), first.shape[1], dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
        adapter = [p for p in self.model.parameters() if p.requires_grad] if config.adapter.rank else []
        self.trained = [*adapter, self.weight, self.bias]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1.0, eps=1e-5, weight_decay=config.weight_decay)

    def state(self, text: str) -> Tensor:
        """Read after a token that ends a text, as a document follows another."""
        return pooled_state(self.model, [self.start], self.ids[text], self.leave, self.config.pool)

    def values(self, text: str) -> Tensor:
        even = (self.state(text) - self.centre) / self.scale
        odds = torch.stack([(row * even).sum() for row in self.weight]) + self.bias
        return torch.sigmoid(odds)

    def learn(self, rows: list[dict[str, Any]], step: int, steps: int) -> dict[str, float]:
        losses, errors = [], []
        for row in rows:
            own = self.values(row["prompt"])[self.labels.index(row["completion"])]
            reward = row["reward"]
            losses.append(-reward * torch.log(own) - (1 - reward) * torch.log(1 - own))
            errors.append(abs(float(own.detach()) - reward))
        loss = torch.stack(losses).mean()
        torch.autograd.backward(loss)
        rate = self.config.learning_rate * (steps - step) / steps
        norm = take_step(self.optimizer, self.trained, rate, self.config.max_grad_norm)
        return {
            "loss": float(loss.detach()), "rating_error": math.fsum(errors) / len(errors), "grad_norm": norm,
            "learning_rate": rate,
        }  # fmt: skip


def from_a_log(config: Any, directory: Path, log: list[dict[str, Any]]) -> list[dict[str, float]]:
    rows = [
        {"prompt": row["prompt"], "completion": row["completion"], "reward": row["scores"]["overall"]}
        for row in log
    ]
    rows = [row for row in rows if not out(row["prompt"], "heldout", config)]
    learner = Learner(config, directory, ["bad", "good"], [row["prompt"] for row in rows])
    size, batches = config.batch_size, list[list[int]]()
    for epoch in range(config.epochs):
        order = rng(config.seed, "bandit order", epoch).permutation(len(rows)).tolist()
        batches += [order[at : at + size] for at in range(0, len(rows), size)]
    return [learner.learn([rows[i] for i in batch], n, len(batches)) for n, batch in enumerate(batches)]


def choosing(config: Any, directory: Path) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """The steps, and what was chosen."""
    training = [i for i, text in enumerate(TEXTS) if not out(text, "heldout contexts", config)]
    learner = Learner(config, directory, config.labels, [TEXTS[i] for i in training])
    steps, log, found = config.rounds * config.steps_per_round, list[dict[str, Any]](), []
    for step in range(steps):
        row = {}
        if step % config.steps_per_round == 0:
            round = step // config.steps_per_round
            new = [choice(learner, i, round) for i in asked(training, config, round)]
            row["round_reward"] = math.fsum(one["reward"] for one in new) / len(new)
            log += new
        size = min(len(log), config.batch_size)
        batch = rng(config.seed, "bandit batch", step).choice(len(log), size, replace=False)
        found.append(row | learner.learn([log[int(i)] for i in batch], step, steps))
    return found, log


def asked(training: list[int], config: Any, round: int) -> list[int]:
    order = rng(config.seed, "bandit contexts", round).permutation(len(training))
    return [training[int(i)] for i in order[: config.contexts_per_round]]


def choice(learner: Learner, i: int, round: int) -> dict[str, Any]:
    """A label by the softmax of Q over the temperature, the first whose cumulated chance is above the number drawn."""
    with torch.no_grad():
        worth = [math.exp(float(q) / learner.config.temperature) for q in learner.values(TEXTS[i])]
    chances = [x / math.fsum(worth) for x in worth]
    number, label = rng(learner.config.seed, "bandit", round, i).random(), 0
    while number >= math.fsum(chances[: label + 1]):
        label += 1
    name = learner.labels[label]
    return {
        "context": i, "prompt": TEXTS[i], "completion": name, "propensity": chances[label],
        "reward": float(name == RIGHT[i]),
    }  # fmt: skip


def out(text: str, name: str, config: Any) -> bool:
    return bool(rng(config.seed, name, json.dumps(text)).random() < config.heldout)


def main() -> None:
    golden: dict[str, Any] = {"log": logged(), "contexts": TEXTS, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, key, rows in (
            ("log", "data", golden["log"]),
            ("choosing", "contexts", [{"prompt": t} for t in TEXTS]),
        ):
            path = place / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            more: dict[str, Any] = {"data": [str(path)]} if key == "data" else {"contexts": str(path)}
            config = bandit.Config.model_validate(RUNS[name] | more)
            run: dict[str, Any] = {"settings": RUNS[name]}
            if name == "log":
                run["steps"] = from_a_log(config, place / f"{name} peer", golden["log"])
            else:
                run["steps"], log = choosing(config, place / f"{name} peer")
                run["chosen"] = [[one["context"], one["completion"], one["propensity"]] for one in log]
            bandit.run(config, place / name)
            ours = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
            both = zip(ours, run["steps"], strict=True)
            far = max((abs(a[n] - b[n]), n, a["step"]) for a, b in both for n in b)
            print(f"{name}: {len(ours)} steps; the recipe is off by at most {far}")
            golden["runs"][name] = run
    (HERE / "bandit_tiny.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
