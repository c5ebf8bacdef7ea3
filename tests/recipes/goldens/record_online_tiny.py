"""Record 50 steps of each variant on the tiny model for tests/recipes/test_online_golden.py: tokens from ours, numbers
from elsewhere.

    python tests/recipes/goldens/record_online_tiny.py [NAME ...]

First the recipe runs and its engine's samples are written down; from the second step on many are cut short by an end of
text, so that lengths differ and sampler and trainer part. Then those tokens are learned from a second time, by an
implementation that shares nothing with Plaudit's but the adapter's first weights and the order of minibatches (see
peer.py): losses by cases, one sample at a time. Its numbers, not the recipe's, are the golden.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from peer import Recorded, by_prompt, cut_short, logprobs_of, peft_model, record_tokens, steered, take_step

from plaudit.models.load import load_model
from plaudit.randomness import rng
from runs import PROMPTS, shipped
from tiny_models import transformers_model

HERE = Path(__file__).parent
COMMON: dict[str, Any] = {
    "model": "tiny",
    "reward": "rules:fourths",
    "seed": 5,
    "steps": 50,
    "prompts_per_step": 2,
    "samples_per_prompt": 2,
    "max_new_tokens": 6,
    "temperature": 0.9,
    "missing_eos_penalty": -0.25,
    "epochs": 2,
    "minibatches": 2,
    "learning_rate": 6e-3,
    "max_grad_norm": 0.5,
    "importance_cap": 1.3,
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    "stop": {"patience": 1000, "max_kl": 100.0},
    "precision": "float64",
    "threads": 1,
}
STEERED = {"coef": 0.2, "place": "reward", "estimator": "k1", "target": 0.02, "horizon": 100.0}
CASES: dict[str, dict[str, Any]] = {
    "reinforce": {"kl": {"coef": 0.1, "place": "loss", "estimator": "k2"}, "entropy_coef": 0.01},
    "rloo": {"kl": STEERED},
    "rloo_clipped": {"kl": STEERED, "loss": "clipped", "clip": 0.4},
    "reinforce_plus_plus": {"kl": STEERED | {"estimator": "k2"}, "entropy_coef": 0.02, "clip": 0.05},
    "grpo": {"kl": {"coef": 0.3, "target": 0.02, "horizon": 100.0}, "entropy_coef": 0.02, "clip": 0.05},
    "dr_grpo": {"kl": STEERED, "clip": 0.05, "missing_eos_penalty": None, "max_grad_norm": 0.1},
    "dapo": {"clip": 0.02, "clip_high": 0.06, "overlong_buffer": 4, "dynamic_sampling": 2},
    "gspo": {"clip": 0.05, "clip_high": 0.08, "scale": "batch"},
    "rejection": {},
}
"""By its name: what of configs/NAME.yaml is set; rloo_clipped is of configs/rloo.yaml."""


def price(estimator: str, gap: Tensor) -> Tensor:
    """gap: log-probability less the reference's."""
    return {"k1": gap, "k2": gap * gap / 2, "k3": torch.exp(-gap) - 1 + gap}[estimator]


def held(ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's surrogate by its cases: beyond the clip there is no more to win. And where that was so."""
    above = (advantage > 0) & (ratio > 1 + high)
    below = (advantage < 0) & (ratio < 1 - low)
    kept = torch.where(
        above, (1 + high) * advantage, torch.where(below, (1 - low) * advantage, ratio * advantage)
    )
    return kept, (above | below).double()


def mean(xs: list[float]) -> float:
    return math.fsum(xs) / len(xs)


def deviation(xs: list[float], less: int = 0) -> float:
    return math.sqrt(math.fsum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - less))


class Learner:
    """A recipe written out, a sample at a time."""

    def __init__(self, name: str, config: Any, directory: Path) -> None:
        self.name, self.config = name, config
        self.baseline: float | None = None
        self.coef = config.kl.coef if name != "rejection" else 0.0
        self.reference = transformers_model(load_model("tiny", torch.float64).directory, torch.float64)
        self.policy = peft_model(config, "policy", config.adapter.blocks, directory)
        self.trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=1.0, eps=1e-5)

    def of(self, model: Any, sample: Recorded) -> tuple[Tensor, Tensor]:
        return logprobs_of(model, sample, self.config.temperature)

    def earned(self, sample: Recorded) -> float:
        c, length = self.config, len(sample["completion_ids"])
        found = score(sample)
        if sample["finish_reason"] == "length" and c.missing_eos_penalty is not None:
            found = c.missing_eos_penalty
        buffer = getattr(c, "overlong_buffer", 0)
        over = length - (c.max_new_tokens - buffer)
        return found - (min(over / buffer, 1.0) if buffer and over > 0 else 0.0)

    def chosen(self, draws: list[list[Recorded]]) -> list[Recorded]:
        """Groups that teach something, as many as are wanted; the first draw's where there are none."""
        n = self.config.samples_per_prompt
        if not getattr(self.config, "dynamic_sampling", 0):
            return draws[0]
        groups = [draw[at : at + n] for draw in draws for at in range(0, len(draw), n)]
        unlike = [group for group in groups if len({self.earned(s) for s in group}) > 1]
        return [s for group in unlike[: self.config.prompts_per_step] for s in group] or draws[0]

    def step(self, number: int, draws: list[list[Recorded]]) -> dict[str, float]:
        c, everything, samples = self.config, [s for draw in draws for s in draw], self.chosen(draws)
        with torch.no_grad():
            ref = [self.of(self.reference, s)[0] for s in samples]
            pairs = [self.of(self.policy, s) for s in samples]
        old = [pair[0] for pair in pairs]
        gaps = [o - r for o, r in zip(old, ref, strict=True)]
        found = {
            "reward": mean([score(s) for s in everything]),
            "kl": float(torch.cat(gaps).mean()),
            "entropy": float(torch.cat([pair[1] for pair in pairs]).mean()),
            "length": mean([len(s["completion_ids"]) for s in everything]),
            "eos_rate": mean([float(s["finish_reason"] == "stop") for s in everything]),
        }
        if self.name == "rejection":
            return found | self.imitate(number, samples)
        found |= {"kl_coef": self.coef}
        if "grpo" in self.name or self.name in ("dapo", "gspo"):
            advantages = self.beside_the_group(samples, gaps)
            found["draws"] = len(draws)
        else:
            advantages, found["return"] = self.beside_a_baseline(samples, gaps)
        found |= self.update(number, samples, old, ref, advantages)
        self.coef = steered(self.coef, found["kl"], c, len(samples))
        return found

    def charged(self, samples: list[Recorded], gaps: list[Tensor]) -> list[list[float]]:
        """Per token: the price of its KL, where it is in the reward; on the last what the completion earned."""
        c = self.config
        coef = self.coef if c.kl.place == "reward" else 0.0
        rewards = [[-coef * float(x) for x in price(c.kl.estimator, gap)] for gap in gaps]
        for row, sample in zip(rewards, samples, strict=True):
            row[-1] += self.earned(sample)
        return rewards

    def beside_the_group(self, samples: list[Recorded], gaps: list[Tensor]) -> list[list[float]]:
        c, worth = self.config, [math.fsum(row) for row in self.charged(samples, gaps)]
        n, out = c.samples_per_prompt, list[list[float]]()
        for i, sample in enumerate(samples):
            group = worth[i // n * n : i // n * n + n]
            scale = {"group": deviation(group, 1) + 1e-4, "batch": deviation(worth, 1) + 1e-4, "none": 1.0}[
                c.scale
            ]
            out.append([(worth[i] - mean(group)) / scale] * len(sample["completion_ids"]))
        return out

    def beside_a_baseline(
        self, samples: list[Recorded], gaps: list[Tensor]
    ) -> tuple[list[list[float]], float]:
        c, rewards = self.config, self.charged(samples, gaps)
        whole = [math.fsum(row) for row in rewards]
        n, out = c.samples_per_prompt, list[list[float]]()
        for i, row in enumerate(rewards):
            group = i // n * n
            others = [whole[j] for j in range(group, group + n) if j != i]
            start = mean(whole) if self.baseline is None else self.baseline
            against = {"moving": start, "leave_one_out": mean(others), "none": 0.0}[c.baseline]
            rest = [math.fsum(row[t:]) if c.action == "token" else whole[i] for t in range(len(row))]
            out.append([x - against for x in rest])
        if c.whiten:
            flat = [x for row in out for x in row]
            out = [[(x - mean(flat)) / math.sqrt(deviation(flat) ** 2 + 1e-8) for x in row] for row in out]
        keep = 0.0 if self.baseline is None else c.baseline_decay
        self.baseline = keep * (self.baseline or 0.0) + (1 - keep) * mean(whole)
        return out, mean(whole)

    def minibatches(self, number: int, epoch: int, samples: list[Recorded]) -> list[list[int]]:
        groups = by_prompt(samples)
        order = rng(self.config.seed, "epoch", number, epoch).permutation(len(groups))
        parts = np.array_split(order, min(self.config.minibatches, len(groups)))
        return [[i for group in part for i in groups[group]] for part in parts]

    def rate(self, number: int) -> float:
        return float(self.config.learning_rate * (self.config.steps - number) / self.config.steps)

    def imitate(self, number: int, samples: list[Recorded]) -> dict[str, float]:
        c, n, best = self.config, self.config.samples_per_prompt, list[Recorded]()
        for at in range(0, len(samples), n):
            group = samples[at : at + n]
            if len({self.earned(s) for s in group}) > 1:
                best.append(max(group, key=self.earned))  # the first of equals
        found = {"kept": float(len(best))}
        if not best:
            return found
        found["kept_reward"] = mean([score(s) for s in best])
        for epoch in range(c.epochs):
            losses = []
            for part in self.minibatches(number, epoch, best):
                chosen = torch.cat([self.of(self.policy, best[i])[0] for i in part])
                torch.autograd.backward(-chosen.mean())
                losses.append(-float(chosen.detach().mean()))
                found["grad_norm"] = take_step(
                    self.optimizer, self.trained, self.rate(number), c.max_grad_norm
                )
            found["nll"] = mean(losses)
        return found

    def update(
        self,
        number: int,
        samples: list[Recorded],
        old: list[Tensor],
        ref: list[Tensor],
        advantages: list[list[float]],
    ) -> dict[str, float]:
        c, found = self.config, dict[str, float]()
        for epoch in range(c.epochs):
            figures = list[dict[str, float]]()
            for part in self.minibatches(number, epoch, samples):
                loss, said = self.loss([samples[i] for i in part], [old[i] for i in part], [ref[i] for i in part],
                                       [torch.tensor(advantages[i], dtype=torch.float64) for i in part])  # fmt: skip
                torch.autograd.backward(loss)
                figures.append(said)
                found["grad_norm"] = take_step(
                    self.optimizer, self.trained, self.rate(number), c.max_grad_norm
                )
            found |= {k: mean([f[k] for f in figures]) for k in figures[0] if k != "ratio_max"}
            if "ratio_max" in figures[0]:
                found["ratio_max"] = max(f["ratio_max"] for f in figures)
        return found

    def loss(
        self, samples: list[Recorded], old: list[Tensor], ref: list[Tensor], advantages: list[Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Of one minibatch. Each term is a list of tensors, one a sample, and `over` says how they are averaged."""
        c, plain = self.config, getattr(self.config, "loss", "") == "plain"
        grouped = hasattr(c, "mean_over")
        whole = (grouped and c.ratio == "completion") or (
            not grouped and not plain and c.action == "completion"
        )
        counts = [len(s["completion_ids"]) for s in samples]

        def over(xs: list[Tensor], how: str) -> Tensor:
            sums = [x.sum() for x in xs]
            if how == "completions":
                return torch.stack([x / k for x, k in zip(sums, counts, strict=True)]).mean()
            of_all = torch.stack(sums).sum()
            longest = len(counts) * c.max_new_tokens
            divisor: int = {"tokens": sum(counts), "sums": len(counts), "constant": longest}[how]
            return of_all / divisor

        terms: dict[str, list[Tensor]] = {}
        for i, sample in enumerate(samples):
            now, entropy = self.of(self.policy, sample)
            sampled = torch.tensor(sample["logprobs"], dtype=torch.float64)
            moved, apart = now - old[i], (now.detach() if plain else old[i]) - sampled
            if whole:
                moved, behind = (moved.mean(), apart.mean()) if grouped else (moved.sum(), apart.sum())
                advantage, spread = advantages[i][0], torch.full_like(now, 1.0) / counts[i]
            else:
                behind, advantage, spread = apart, advantages[i], torch.ones_like(now)
            weight = torch.exp(behind).clamp(max=c.importance_cap)
            if plain:
                surrogate, clipped = now * advantage, torch.zeros_like(now)
            else:
                high = getattr(c, "clip_high", None) or c.clip
                surrogate, clipped = held(torch.exp(moved), advantage, c.clip, high)
            token = (now - old[i]).detach()
            ratio = torch.exp(moved).detach()
            here = {
                "surrogate": weight * surrogate * spread, "clip_fraction": clipped * spread,
                "importance_mean": weight * spread, "importance_capped": (weight >= c.importance_cap) * spread,
                "ratio_mean": ratio * spread, "ratio_max": ratio, "approx_kl": torch.exp(token) - 1 - token,
                "sampler_difference": apart.abs(), "entropy": entropy, "kl": price(c.kl.estimator, now - ref[i]),
            }  # fmt: skip
            for name, x in here.items():
                terms.setdefault(name, []).append(x)

        # How the loss is averaged, and how what is said of it. A completion's own terms are spread over its tokens.
        if plain:
            how, told = "sums", "tokens"
        elif whole:
            how, told = "sums", "completions"
        else:
            how = c.mean_over if grouped else "tokens"
            told = "tokens" if how == "constant" else how
        side = "completions" if whole and grouped else how
        said = {"policy_loss": -float(over(terms["surrogate"], how).detach())}
        names = ["importance_mean", "importance_capped", "sampler_difference"]
        names += [] if plain else ["clip_fraction", "approx_kl", "ratio_mean"]
        for name in names:
            per_token = name in ("sampler_difference", "approx_kl")
            said[name] = float(over(terms[name], told if per_token or not whole else "sums").detach())
        if not plain:
            said["ratio_max"] = max(float(x.max()) for x in terms["ratio_max"])
        loss = -over(terms["surrogate"], how) - c.entropy_coef * over(terms["entropy"], side)
        if c.kl.place == "loss":
            loss = loss + self.coef * over(terms["kl"], side)
        return loss, said


def score(sample: Recorded) -> float:
    ids: list[int] = sample["completion_ids"]
    return sum(i % 4 == 0 for i in ids) / len(ids)


def record(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        settings = COMMON | CASES[name]
        recipe, config = shipped(
            name.removesuffix("_clipped"), prompts=str(place / "prompts.txt"), **settings
        )
        draws = record_tokens(recipe, config, place / "run", cut_short)
        steps: list[list[list[Recorded]]] = [[] for _ in range(config.steps)]
        for key, samples in draws:
            steps[int(key[2])].append(samples)
        learner = Learner(name, config, place)
        expected = [learner.step(number, each) for number, each in enumerate(steps)]
        ours = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        far = max((abs(a[n] - b[n]), n, a["step"]) for a, b in zip(ours, expected, strict=True) for n in b)
        print(f"{name}: {len(draws)} draws in {len(steps)} steps; the recipe is off by at most {far}")
        lines = [
            json.dumps(
                {"draws": [list(map(compact, draw)) for draw in each], "expected": row}, separators=(",", ":")
            )
            for each, row in zip(steps, expected, strict=True)
        ]
        head = json.dumps({"settings": settings, "prompts": PROMPTS})
        (HERE / f"online_{name}.json").write_text(
            f'{{"about":{head},\n"steps":[\n' + ",\n".join(lines) + "\n]}\n"
        )


def compact(sample: Recorded) -> list[Any]:
    return [sample[k] for k in ("prompt", "index", "prompt_ids", "completion_ids", "logprobs")]


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        record(case)
