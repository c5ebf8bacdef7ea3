"""Record 50 steps of online_dpo on the tiny model for tests/recipes/test_online_golden.py: tokens from ours, numbers
from elsewhere.

    python tests/recipes/goldens/record_online_dpo_tiny.py

As record_online_tiny.py does it for the policy gradients: the recipe's own samples, many cut short, are scored, paired
and learned from a second time, one completion at a time, by transformers' Llama and peft's LoRA in float64, with the
loss written out from the paper. Peers at the recording: transformers 5.23.0, peft 0.21.2, torch 2.13.0.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import Recorded, cut_short, logprobs_of, peft_model, record_tokens, take_step
from record_online_tiny import COMMON, HERE, compact, mean, score
from torch import Tensor

from plaudit.models.load import load_model
from plaudit.randomness import rng
from runs import PROMPTS, shipped
from tiny_models import transformers_model

SETTINGS: dict[str, Any] = COMMON | {
    "prompts_per_step": 3,
    "samples_per_prompt": 3,
    "beta": 0.4,
    "label_smoothing": 0.05,
    "max_grad_norm": 1.0,
}
Couple = tuple[int, int]


class Learner:
    """The recipe written out."""

    def __init__(self, config: Any, directory: Path) -> None:
        self.config = config
        self.reference = transformers_model(load_model("tiny", torch.float64).directory, torch.float64)
        self.policy = peft_model(config, "policy", config.adapter.blocks, directory)
        self.trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=1.0, eps=1e-5)

    def of(self, model: Any, sample: Recorded) -> tuple[Tensor, Tensor]:
        return logprobs_of(model, sample, self.config.temperature)

    def earned(self, sample: Recorded) -> float:
        ended = sample["finish_reason"] == "stop"
        return score(sample) if ended else float(self.config.missing_eos_penalty)

    def couples(self, samples: list[Recorded]) -> list[Couple]:
        """The best and the worst of each prompt, the first of equals; none of those that earned the same."""
        n, found = self.config.samples_per_prompt, list[Couple]()
        for at in range(0, len(samples), n):
            worth = [self.earned(s) for s in samples[at : at + n]]
            if max(worth) > min(worth):
                found.append((at + worth.index(max(worth)), at + worth.index(min(worth))))
        return found

    def step(self, number: int, samples: list[Recorded]) -> dict[str, float]:
        c = self.config
        with torch.no_grad():
            ref = [self.of(self.reference, s)[0] for s in samples]
            seen = [self.of(self.policy, s) for s in samples]
        couples = self.couples(samples)
        found = {
            "reward": mean([score(s) for s in samples]),
            "kl": float(torch.cat([now - then for (now, _), then in zip(seen, ref, strict=True)]).mean()),
            "entropy": float(torch.cat([entropy for _, entropy in seen]).mean()),
            "length": mean([len(s["completion_ids"]) for s in samples]),
            "eos_rate": mean([float(s["finish_reason"] == "stop") for s in samples]),
            "pairs": len(couples),
        }
        rate = c.learning_rate * (c.steps - number) / c.steps
        for epoch in range(c.epochs if couples else 0):
            figures = list[dict[str, float]]()
            order = rng(c.seed, "epoch", number, epoch).permutation(len(couples))
            for part in np.array_split(order, min(c.minibatches, len(couples))):
                loss, said = self.loss([couples[i] for i in part], samples, ref)
                torch.autograd.backward(loss)
                figures.append(said)
                found["grad_norm"] = take_step(self.optimizer, self.trained, rate, c.max_grad_norm)
            found |= {name: mean([f[name] for f in figures]) for name in figures[0]}
        return found

    def loss(
        self, couples: list[Couple], samples: list[Recorded], ref: list[Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Of one minibatch: equation 7, of a label that is wrong with a small chance."""
        beta, wrong, losses, rewards = self.config.beta, self.config.label_smoothing, [], []
        for couple in couples:
            won, lost = (beta * (self.of(self.policy, samples[i])[0].sum() - ref[i].sum()) for i in couple)
            sure = torch.sigmoid(won - lost)
            losses.append(-(1 - wrong) * torch.log(sure) - wrong * torch.log(1 - sure))
            rewards.append((float(won.detach()), float(lost.detach())))
        chosen, rejected = (math.fsum(side) / len(side) for side in zip(*rewards, strict=True))
        loss = torch.stack(losses).mean()
        return loss, {
            "loss": float(loss.detach()),
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": mean([float(one > other) for one, other in rewards]),
        }


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        recipe, config = shipped("online_dpo", prompts=str(place / "prompts.txt"), **SETTINGS)
        draws = record_tokens(recipe, config, place / "run", cut_short)
        learner = Learner(config, place)
        expected = [learner.step(number, samples) for number, (_, samples) in enumerate(draws)]
        ours = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        far = max((abs(a[n] - b[n]), n, a["step"]) for a, b in zip(ours, expected, strict=True) for n in b)
        print(f"online_dpo: {len(draws)} steps; the recipe is off by at most {far}")
        lines = [
            json.dumps({"draws": [list(map(compact, samples))], "expected": row}, separators=(",", ":"))
            for (_, samples), row in zip(draws, expected, strict=True)
        ]
        # What the policy gradients' settings have beside is left out, as the recipe has no such settings.
        settings = {name: value for name, value in SETTINGS.items() if name in recipe.Config.model_fields}
        head = json.dumps({"settings": settings, "prompts": PROMPTS})
        (HERE / "online_online_dpo.json").write_text(
            f'{{"about":{head},\n"steps":[\n' + ",\n".join(lines) + "\n]}\n"
        )


if __name__ == "__main__":
    main()
