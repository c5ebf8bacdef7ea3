"""Record 50 PPO steps on the tiny model for tests/recipes/test_ppo_golden.py: tokens from ours, numbers from elsewhere.

    python tests/recipes/goldens/record_ppo_tiny.py

First the ppo recipe runs and its engine's samples are written down; from the second step on many are cut short by an
end of text. Then those tokens are learned from a second time, by an implementation that shares nothing with Plaudit's
but the adapters' first weights and the order of minibatches: transformers' Llama and peft's LoRA in float64, one sample
at a time without padding, packing or streams, advantages by their defining double sum. Its numbers, not the recipe's,
are the golden.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from peer import Recorded, by_prompt, cut_short, logprobs_of, peft_model, record_tokens, steered, take_step

from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.recipes import ppo
from tiny_models import transformers_model

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "reward": "rules:fourths",
    "seed": 14,
    "steps": 50,
    "prompts_per_step": 2,
    "samples_per_prompt": 2,
    "max_new_tokens": 6,
    "temperature": 0.9,
    "missing_eos_penalty": -0.25,
    "whiten_rewards": True,
    "epochs": 2,
    "minibatches": 2,
    "learning_rate": 6e-3,
    "clip": 0.1,
    "value_clip": 0.05,
    "value_coef": 0.3,
    "entropy_coef": 0.03,
    "gamma": 0.99,
    "lam": 0.9,
    "max_grad_norm": 0.5,
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3, "value_blocks": 2},
    "kl": {"coef": 0.2, "target": 0.02, "horizon": 100.0},
    "stop": {"patience": 1000},
    "precision": "float64",
    "threads": 1,
}
PROMPTS = ["good morning", "what is your name", "tell me more", "I am tired", "coffee or tea"]
NUMBERS = (
    "reward", "kl", "entropy", "length", "policy_loss", "value_loss", "value_error", "grad_norm", "clip_fraction",
    "approx_kl", "explained_variance", "kl_coef", "importance_mean", "sampler_difference",
)  # fmt: skip


class Learner:
    """PPO written out, a sample at a time."""

    def __init__(self, config: ppo.Config, directory: Path) -> None:
        self.config, self.coef = config, config.kl.coef
        self.reference = transformers_model(load_model("tiny", torch.float64).directory, torch.float64)
        self.policy = peft_model(config, "policy", config.adapter.blocks, directory)
        self.value = peft_model(config, "value", config.adapter.value_blocks, directory)
        self.head = torch.nn.Linear(64, 1, dtype=torch.float64)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        trained = [p for m in (self.policy, self.value, self.head) for p in m.parameters() if p.requires_grad]
        self.trained: list[torch.nn.Parameter] = trained
        self.optimizer = torch.optim.Adam(self.trained, lr=1.0, eps=1e-5)

    def logprobs(self, model: Any, sample: Recorded) -> tuple[Tensor, Tensor]:
        return logprobs_of(model, sample, self.config.temperature)

    def values(self, sample: Recorded) -> Tensor:
        ids = [*sample["prompt_ids"], *sample["completion_ids"]]
        states = self.value.base_model.model.model(torch.tensor([ids])).last_hidden_state[0]
        return self.head(states[len(sample["prompt_ids"]) - 1 : -1])[:, 0]  # type: ignore[no-any-return]

    def step(self, number: int, samples: list[Recorded]) -> dict[str, float]:
        c = self.config
        with torch.no_grad():
            ref = [self.logprobs(self.reference, s)[0] for s in samples]
            pairs = [self.logprobs(self.policy, s) for s in samples]
            old, entropy = [p[0] for p in pairs], [p[1] for p in pairs]
            before = [self.values(s) for s in samples]
        scores = [sum(i % 4 == 0 for i in s["completion_ids"]) / len(s["completion_ids"]) for s in samples]
        rewards = [[-self.coef * float(x) for x in o - r] for o, r in zip(old, ref, strict=True)]
        for sample, score, row in zip(samples, scores, rewards, strict=True):
            row[-1] += score if sample["finish_reason"] == "stop" else float(c.missing_eos_penalty or 0)
        flat = [x for row in rewards for x in row]
        mean = math.fsum(flat) / len(flat)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
        rewards = [[(x - mean) / spread + mean for x in row] for row in rewards]
        raw = []
        for row, v in zip(rewards, before, strict=True):
            worth = [*v.tolist(), 0.0]
            delta = [r + c.gamma * worth[t + 1] - worth[t] for t, r in enumerate(row)]
            raw.append(
                [sum((c.gamma * c.lam) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(row))]
            )
        returns = [
            [a + x for a, x in zip(row, v.tolist(), strict=True)] for row, v in zip(raw, before, strict=True)
        ]
        flat = [x for row in raw for x in row]
        mean = math.fsum(flat) / len(flat)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
        advantages = [[(x - mean) / spread for x in row] for row in raw]

        def variance(xs: list[float]) -> float:
            return math.fsum((x - math.fsum(xs) / len(xs)) ** 2 for x in xs) / len(xs)

        goals = [x for row in returns for x in row]
        missed = [
            g - float(x) for row, v in zip(returns, before, strict=True) for g, x in zip(row, v, strict=True)
        ]
        gaps = [float(x) for o, r in zip(old, ref, strict=True) for x in o - r]
        found = {
            "reward": sum(scores) / len(scores),
            "kl": math.fsum(gaps) / len(gaps),
            "entropy": float(torch.cat(entropy).mean()),
            "length": len(gaps) / len(samples),
            "explained_variance": 1 - variance(missed) / variance(goals),
            "kl_coef": self.coef,
        }
        for epoch in range(c.epochs):
            last = dict.fromkeys(
                ("policy_loss", "value_loss", "value_error", "clip_fraction", "approx_kl", "importance_mean",
                 "sampler_difference"), 0.0,
            )  # fmt: skip
            groups = by_prompt(samples)
            for group in rng(c.seed, "epoch", number, epoch).permutation(len(groups)).tolist():
                mine = groups[group]
                count = sum(len(samples[i]["completion_ids"]) for i in mine)
                sums = {name: torch.zeros((), dtype=torch.float64) for name in [*last, "entropy"]}
                for i in mine:
                    (now, spread_out), valued = (
                        self.logprobs(self.policy, samples[i]),
                        self.values(samples[i]),
                    )
                    sums["entropy"] += spread_out.sum()
                    for t in range(len(now)):
                        weight = min(math.exp(float(old[i][t]) - samples[i]["logprobs"][t]), c.importance_cap)
                        ratio = torch.exp(now[t] - old[i][t])
                        near = min(max(float(ratio.detach()), 1 - c.clip), 1 + c.clip)
                        inside = near == float(ratio.detach())
                        plain = ratio * advantages[i][t]
                        clipped = (
                            plain if inside else torch.tensor(near * advantages[i][t], dtype=torch.float64)
                        )
                        smaller = bool(clipped.detach() < plain.detach())
                        sums["policy_loss"] -= weight * (clipped if smaller else plain)
                        sums["clip_fraction"] += float(smaller)
                        log_ratio = float((now[t] - old[i][t]).detach())
                        sums["approx_kl"] += math.exp(log_ratio) - 1 - log_ratio
                        sums["importance_mean"] += weight
                        sums["sampler_difference"] += abs(float(old[i][t]) - samples[i]["logprobs"][t])
                        low, high = float(before[i][t]) - c.value_clip, float(before[i][t]) + c.value_clip
                        square = (valued[t] - returns[i][t]) ** 2
                        held = (torch.clamp(valued[t], low, high) - returns[i][t]) ** 2
                        sums["value_loss"] += 0.5 * (
                            held if bool(held.detach() > square.detach()) else square
                        )
                        sums["value_error"] += float(square.detach())
                total = sums["policy_loss"] + c.value_coef * sums["value_loss"]
                total = (total - c.entropy_coef * sums["entropy"]) / count
                torch.autograd.backward(total)
                rate = c.learning_rate * (c.steps - number) / c.steps
                found["grad_norm"] = take_step(self.optimizer, self.trained, rate, c.max_grad_norm)
                for name in last:
                    last[name] += float(sums[name].detach()) / count / len(groups)
            found |= last
        self.coef = steered(self.coef, found["kl"], c, len(samples))
        return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        config = ppo.Config(prompts=str(place / "prompts.txt"), **SETTINGS)
        steps = [samples for _, samples in record_tokens(ppo, config, place / "run", cut_short)]
        learner = Learner(config, place)
        rows = [learner.step(number, samples) for number, samples in enumerate(steps)]
        ours = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        far = max(abs(ours[i][n] - rows[i][n]) for i in range(len(rows)) for n in NUMBERS)
        print(f"recorded {len(rows)} steps; the recipe is off by at most {far:.1e}")
        lines = [
            json.dumps({"samples": s, "expected": {n: r[n] for n in NUMBERS}})
            for s, r in zip(steps, rows, strict=True)
        ]
        head = json.dumps({"settings": SETTINGS, "prompts": PROMPTS})
        (HERE / "ppo_tiny.json").write_text(
            f'{{"about": {head},\n"steps": [\n' + ",\n".join(lines) + "\n]}\n"
        )
        shutil.rmtree(place / "run")


if __name__ == "__main__":
    main()
