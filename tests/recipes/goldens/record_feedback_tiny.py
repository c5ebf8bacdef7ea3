"""Record 50 steps of reinforce_feedback on the tiny model for tests/recipes/test_feedback_golden.py.

    python tests/recipes/goldens/record_feedback_tiny.py

Completions are drawn once and judged once; one that nobody drew is judged, too. Then they are learned from by
record_online_tiny.py's implementation, which shares nothing with Plaudit's but the adapter's first weights and the
order of prompts and minibatches: what people gave is the score, whoever drew a token of unknown origin was the policy
as it began, and the KL is weighed by how much likelier the policy is to draw the logged token. Its numbers, not the
recipe's, are the golden.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from peer import Recorded, steered
from record_online_tiny import HERE, Learner, mean

from plaudit.models.load import load_model
from plaudit.rollout.generate import generate
from plaudit.tensors import SamplingParams
from plaudit.training.online import prompts_of_step
from runs import PROMPTS, shipped, write_prompts

SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "seed": 5,
    "steps": 50,
    "prompts_per_step": 2,
    "epochs": 2,
    "minibatches": 2,
    "learning_rate": 4e-3,
    "max_grad_norm": 0.5,
    "importance_cap": 1.3,
    "entropy_coef": 0.01,
    "kl": {"coef": 0.1, "target": 0.05, "horizon": 200.0},
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    "stop": {"patience": 1000, "max_kl": 100.0},
    "precision": "float64",
    "threads": 1,
}
UNDRAWN = " good morning to you"


class Judged(Learner):
    """Of judged completions: what people gave is the score, and nothing is drawn."""

    def logged(self, number: int, samples: list[Recorded]) -> dict[str, float]:
        with torch.no_grad():
            ref = [self.of(self.reference, s)[0] for s in samples]
            pairs = [self.of(self.policy, s) for s in samples]
        old = [pair[0] for pair in pairs]
        for sample, first in zip(samples, ref, strict=True):
            sample["logprobs"] = sample["logprobs"] or first.tolist()
        weights, kls = list[float](), list[float]()
        for sample, o, r in zip(samples, old, ref, strict=True):
            for now, then, drawn in zip(o.tolist(), r.tolist(), sample["logprobs"], strict=True):
                weights.append(math.exp(now - drawn))
                kls.append(weights[-1] * (math.exp(then - now) - 1 - (then - now)))
        scores = [sample["score"] for sample in samples]
        found = {
            "reward": mean(scores),
            "return": mean(scores),
            "kl": math.fsum(kls) / math.fsum(weights),
            "kl_coef": self.coef,
            "entropy": float(torch.cat([pair[1] for pair in pairs]).mean()),
            "length": mean([len(s["completion_ids"]) for s in samples]),
            "eos_rate": mean([float(s["completion_ids"][-1] == 1) for s in samples]),
        }
        worth = [[s["score"] - mean(scores)] * len(s["completion_ids"]) for s in samples]
        found |= self.update(number, samples, old, ref, worth)
        self.coef = steered(self.coef, found["kl"], self.config, len(samples))
        return found


def judgements(drawn: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[tuple[str, str], float]]:
    """Records, and by prompt and text the score that they come to: the mean of ratings, else the share of comparisons
    that were won."""
    records, scores = list[dict[str, Any]](), dict[tuple[str, str], float]()
    for number, row in enumerate(drawn):
        if number == 2:  # one that nobody drew is judged in its place: three of each prompt
            continue
        share = round(sum(i % 4 == 0 for i in row["completion_ids"]) / len(row["completion_ids"]), 3)
        given = [share, 1.0] if number % 4 == 1 else [share]
        for level in given:
            rated = {"prompt": row["prompt"], "completion": row["completion"], "scores": {"overall": level}}
            records.append(rated)
        scores[row["prompt"], row["completion"]] = sum(given) / len(given)
    asked, other = drawn[0]["prompt"], drawn[0]["completion"]
    for choice in (0, 0, "tie"):  # of three comparisons it wins two and a half
        records.append({"prompt": asked, "completions": [UNDRAWN, other], "choice": choice})
    scores[asked, UNDRAWN] = 2.5 / 3
    return records, scores


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        out = place / "drawn.jsonl"
        params = SamplingParams(max_new_tokens=6)
        generate("tiny", Path(write_prompts(place)), out, params, n=3, seed=3, dtype=torch.float64)
        drawn = []
        for number, row in enumerate(json.loads(line) for line in out.read_text().splitlines()):
            ids = row["completion_ids"] if number % 2 else [*row["completion_ids"][: 1 + number % 5], 1]
            logprobs = [round(x - 0.1 * (number % 2), 4) for x in row["logprobs"]][: len(ids)]
            kept = {name: row[name] for name in ("prompt", "completion", "tokenizer")}
            drawn.append(kept | {"completion_ids": ids, "logprobs": logprobs})
        out.write_text("".join(json.dumps(row) + "\n" for row in drawn))
        records, scores = judgements(drawn)
        feedback = place / "feedback.jsonl"
        feedback.write_text("".join(json.dumps(row) + "\n" for row in records))
        recipe, config = shipped(
            "reinforce_feedback", feedback=[str(feedback)], samples=[str(out)], **SETTINGS
        )
        tokenizer = load_model("tiny", torch.float64).tokenizer
        known = {(row["prompt"], row["completion"]): row for row in drawn}
        logged = {prompt: [key for key in scores if key[0] == prompt] for prompt in PROMPTS}
        learner = Judged("reinforce_feedback", config, place)
        expected = []
        for number in range(config.steps):
            samples = list[Recorded]()
            chosen = prompts_of_step(len(logged), number, config.prompts_per_step, config.seed)
            for at, which in enumerate(chosen):
                prompt = PROMPTS[which]
                for index, key in enumerate(logged[prompt]):
                    row = known.get(key) or {"completion_ids": tokenizer.complete(UNDRAWN), "logprobs": None}
                    samples.append({
                        "prompt": at, "index": index, "prompt_ids": tokenizer.render(prompt), "score": scores[key],
                        "completion_ids": row["completion_ids"], "logprobs": row["logprobs"],
                    })  # fmt: skip
            expected.append(learner.logged(number, samples))
        recipe.run(config, place / "run")
        ours = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        far = max((abs(a[n] - b[n]), n, a["step"]) for a, b in zip(ours, expected, strict=True) for n in b)
        print(f"reinforce_feedback: {len(ours)} steps; the recipe is off by at most {far}")
        golden = {"settings": SETTINGS, "samples": drawn, "feedback": records, "expected": expected}
        (HERE / "feedback_tiny.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
