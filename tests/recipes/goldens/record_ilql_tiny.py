"""Record 50 ilql steps on the tiny model, for each target, for tests/recipes/test_ilql_golden.py.

    python tests/recipes/goldens/record_ilql_tiny.py

The numbers come from an implementation that shares nothing with Plaudit's but the first weights of adapter and heads
and the order of the episodes: transformers' Llama and peft's LoRA in float64, one episode at a time without padding or
packing, whole tables of Q, every loss a sum over its tokens in a Python loop.
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

sys.path.insert(0, str(Path(__file__).parents[2]))

from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model, make_adapter
from plaudit.models.q_heads import QHeads
from plaudit.randomness import batches_of, torch_seed
from plaudit.recipes import ilql
from tiny_models import transformers_model

HERE = Path(__file__).parent
TARGETS = ("ilql", "q_learning", "sarsa")
SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "seed": 5,
    "heldout": 0.0,
    "rating_centre": 0.4,
    "rating_scale": 1.5,
    "demonstration_reward": 0.8,
    "gamma": 0.9,
    "expectile": 0.8,
    "polyak": 0.1,
    "cql_coef": 0.05,
    "bc_coef": 0.7,
    "awac_beta": 0.6,
    "head_hidden": 12,
    "epochs": 20,
    "batch_size": 3,
    "learning_rate": 4e-3,
    "warmup": 0.1,
    "max_grad_norm": 3.0,
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    "precision": "float64",
    "threads": 1,
}
RECORDS: list[dict[str, Any]] = [
    {"prompt": "how are you", "completion": " great and happy", "scores": {"overall": 0.9}},
    {"prompt": "what do you like", "completions": [" good music", " nothing, it is all awful"], "choice": 0},
    {"prompt": "where is the cat", "completion": " in the garden"},
    {"prompt": "tell me", "completions": [" no", " a book", " yes of course"], "ranking": [2, 1, 0]},
]
"""1 + 2 + 1 + 3 episodes: in batches of 3, 3 steps an epoch."""
EPISODES = [
    ("how are you", " great and happy", 1.5 * (0.9 - 0.4)),
    ("what do you like", " good music", 1.0),
    ("what do you like", " nothing, it is all awful", -1.0),
    ("where is the cat", " in the garden", 0.8),
    ("tell me", " yes of course", 1.0),
    ("tell me", " a book", 0.0),
    ("tell me", " no", -1.0),
]
NUMBERS = (
    "loss",
    "q_loss",
    "value_loss",
    "cql",
    "nll",
    "q",
    "value",
    "advantage",
    "weight",
    "grad_norm",
    "tokens",
)
STEPS = 50


class Learner:
    """Implicit language Q-learning written out, an episode at a time."""

    def __init__(self, config: ilql.Config, directory: Path) -> None:
        import peft

        self.config = c = config
        model = load_model("tiny", torch.float64)
        self.tokenizer = model.tokenizer
        adapter = make_adapter(
            model.trunk, rank=c.adapter.rank, alpha=c.adapter.alpha, blocks=c.adapter.blocks,
            seed=torch_seed(c.seed, "ilql adapter"),
        )  # fmt: skip
        directory.mkdir()
        save_adapter(adapter, directory, base="tiny")
        base = transformers_model(model.directory, torch.float64)
        self.policy = peft.PeftModel.from_pretrained(
            base, str(directory), is_trainable=True, autocast_adapter_dtype=False
        ).double()
        shape = model.trunk.shape
        first = QHeads(shape.width, shape.vocab, hidden=c.head_hidden, dtype=torch.float64)
        tensors = first.initialise(torch_seed(c.seed, "ilql heads")).state_dict()
        names = ("inner", "inner_bias", "weight", "bias")
        self.fast = [[tensors[f"twins.{i}.{n}"].clone().requires_grad_() for n in names] for i in range(2)]
        self.slow = [[t.detach().clone() for t in head] for head in self.fast]
        self.value = [torch.zeros(64).double().requires_grad_(), torch.zeros(()).double().requires_grad_()]
        self.trained: list[Tensor] = [p for p in self.policy.parameters() if p.requires_grad]
        self.trained += [*self.fast[0], *self.fast[1], *self.value]
        self.optimizer = torch.optim.Adam(self.trained, lr=1.0, eps=1e-5)

    @staticmethod
    def table(head: list[Tensor], states: Tensor) -> Tensor:
        inner, inner_bias, weight, bias = head
        return torch.relu(states @ inner.T + inner_bias) @ weight.T + bias

    def episode(self, prompt: str, completion: str, reward: float) -> dict[str, Tensor]:
        c = self.config
        asked = self.tokenizer.inner(prompt)["input_ids"]
        said = [*self.tokenizer.inner(completion, add_special_tokens=False)["input_ids"], 1]
        out = self.policy(torch.tensor([asked + said]), output_hidden_states=True)
        hidden = out.hidden_states[-1][0, len(asked) - 1 : -1]
        states = hidden / (hidden.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
        v = states @ self.value[0] + self.value[1]
        tables = [self.table(head, states) for head in self.fast]
        with torch.no_grad():
            least = torch.minimum(*(self.table(head, states) for head in self.slow))
        logprobs = torch.log_softmax(out.logits[0, len(asked) - 1 : -1], -1)
        sums = {n: torch.zeros((), dtype=torch.float64) for n in NUMBERS[1:-2]}
        sums["policy"] = torch.zeros((), dtype=torch.float64)
        for t, token in enumerate(said):
            end = t + 1 == len(said)
            if end:
                ahead = 0.0
            elif c.target == "ilql":
                ahead = float(v[t + 1].detach())
            else:
                ahead = float(least[t + 1].max() if c.target == "q_learning" else least[t + 1, said[t + 1]])
            target = (reward if end else 0.0) + c.gamma * ahead
            taken = float(least[t, token])
            advantage = taken - float(v[t].detach())
            side = c.expectile if advantage >= 0 else 1 - c.expectile
            weight = min(math.exp(c.awac_beta * advantage), 100.0)
            sums["value_loss"] += side * (taken - v[t]) ** 2
            sums["policy"] -= weight * logprobs[t, token]
            sums["nll"] -= logprobs[t, token].detach()
            sums["value"] += v[t].detach()
            sums["advantage"] += advantage
            sums["weight"] += weight
            for table in tables:
                sums["q_loss"] += (table[t, token] - target) ** 2
                sums["cql"] += torch.logsumexp(table[t], -1) - table[t, token]
                sums["q"] += table[t, token].detach() / 2
        return sums | {"tokens": torch.tensor(float(len(said)))}

    def step(self, number: int, steps: int, batch: list[int]) -> dict[str, float]:
        c = self.config
        parts = [self.episode(*EPISODES[i]) for i in batch]
        whole = {name: torch.stack([p[name] for p in parts]).sum() for name in parts[0]}
        count = float(whole["tokens"])
        loss = whole["q_loss"] + whole["value_loss"] + c.cql_coef * whole["cql"] + c.bc_coef * whole["policy"]
        loss = loss / count
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = math.sqrt(math.fsum(float(p.grad.square().sum()) for p in self.trained if p.grad is not None))
        for parameter in self.trained:
            if parameter.grad is not None and norm > c.max_grad_norm:
                parameter.grad.mul_(c.max_grad_norm / (norm + 1e-6))
        warm = math.ceil(c.warmup * steps)
        factor = (number + 1) / warm if number < warm else (steps - number) / (steps - warm)
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * factor
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.slow, self.fast, strict=True):
                for old, new in zip(slow, fast, strict=True):
                    old.copy_((1 - c.polyak) * old + c.polyak * new)
        found = {name: float(whole[name].detach()) / count for name in NUMBERS[1:-2]}
        return {"loss": float(loss.detach()), **found, "grad_norm": norm, "tokens": count}


def main() -> None:
    lines = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as name:
            config = ilql.Config.model_validate(SETTINGS | {"data": ["unread"], "target": target})
            learner = Learner(config, Path(name) / "policy")
            batches = batches_of(len(EPISODES), config.batch_size, config.epochs, config.seed, "ilql order")
            rows = [learner.step(n, len(batches), batch) for n, batch in enumerate(batches[:STEPS])]
        expected = ",\n".join(json.dumps(row) for row in rows)
        lines.append(f'"{target}": [\n{expected}\n]')
    about = json.dumps({"settings": SETTINGS, "records": RECORDS})
    text = f'{{"about": {about},\n' + ",\n".join(lines) + "\n}\n"
    (HERE / "ilql_tiny.json").write_text(text)


if __name__ == "__main__":
    main()
