"""Labels chosen for texts round after round, each rewarded and logged with the chance that it was chosen with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from plaudit import files
from plaudit.data.choices import Chosen
from plaudit.data.judged import prompt_key
from plaudit.models.label_head import Classifier
from plaudit.randomness import rng
from plaudit.rollout.classify import draw_label
from plaudit.tensors import Sample, SamplingParams, Scorer
from plaudit.types import Prompt, UserError, prompt_to_json


class Chooser:
    """Texts to choose labels for, the scorer that rewards a choice, and the log of what was chosen so far.

    The scorer sees samples: `text` is the label, `prompt` the text's number in the file (from 0), `prompt_ids` its ids.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[list[int]],
        held: Sequence[bool],
        scorer: Scorer,
        policy: Callable[[Tensor], Tensor],
        *,
        per_round: int,
        seed: int,
    ) -> None:
        """held: which texts are kept to measure with. policy: values [N, K] -> probabilities [N, K]."""
        self.prompts, self.ids, self.scorer, self.policy = prompts, ids, scorer, policy
        self.per_round, self.seed = per_round, seed
        self.training = [i for i, out in enumerate(held) if not out]
        self.heldout = [i for i, out in enumerate(held) if out]
        self.log: list[Chosen] = []
        self.rows: list[dict[str, Any]] = []

    def training_texts(self) -> list[list[int]]:
        return [self.ids[i] for i in self.training]

    def act(self, classifier: Classifier, round: int) -> float:
        """Choose a label for each text of a round by the policy, and log it with its reward; returns the mean."""
        order = rng(self.seed, "bandit contexts", round).permutation(len(self.training))
        which = [self.training[int(i)] for i in order[: self.per_round]]
        values = classifier.values([self.ids[i] for i in which]).double().cpu()
        chances = self.policy(values)
        chosen = [draw_label(chances[n], self.seed, "bandit", round, i) for n, i in enumerate(which)]
        own = [float(chances[n, label]) for n, label in enumerate(chosen)]
        rewards = self.rewards(which, [classifier.labels[label] for label in chosen], classifier)
        for i, label, chance, reward in zip(which, chosen, own, rewards, strict=True):
            row = {
                "prompt": prompt_to_json(self.prompts[i]),
                "completion": classifier.labels[label],
                "scores": {"overall": reward},
                "propensity": chance,
                "policy_version": f"round-{round}",
                "context": i,
            }
            self.add(row)
        return sum(rewards) / len(rewards)

    def add(self, row: dict[str, Any]) -> None:
        i, label = row["context"], row["completion"]
        key, reward = prompt_key(self.prompts[i]), row["scores"]["overall"]
        self.log.append(Chosen(key, self.ids[i], label, reward, row["propensity"], row["policy_version"]))
        self.rows.append(row)

    def rewards(self, which: Sequence[int], labels: Sequence[str], classifier: Classifier) -> list[float]:
        """The scorer's, of these labels for these texts. UserError for one beyond 0 to 1."""
        tokenizer = classifier.model.tokenizer
        samples = [
            Sample(
                prompt=i,
                index=0,
                prompt_ids=tuple(self.ids[i]),
                completion_ids=tuple(tokenizer.encode(label)),
                text=label,
                logprobs=(),
                finish_reason="stop",
                policy_version="bandit",
                params=SamplingParams(),
                tokenizer=tokenizer.fingerprint,
            )
            for i, label in zip(which, labels, strict=True)
        ]
        found = self.scorer.score(samples)
        for reward in found:
            if not 0 <= reward <= 1:
                raise UserError(
                    f"gave {reward:g}, not within 0 to 1", where="reward", fix="scale it to 0 to 1"
                )
        return found

    def measure(self, classifier: Classifier) -> dict[str, float | int | None]:
        """What the best label by Q earns on the texts that were held out; None where none were."""
        if not (which := self.heldout):
            return {"contexts_measured": 0, "heldout_reward": None}
        best = classifier.values([self.ids[i] for i in which]).argmax(-1).tolist()
        earned = self.rewards(which, [classifier.labels[label] for label in best], classifier)
        return {"contexts_measured": len(which), "heldout_reward": sum(earned) / len(earned)}

    def write(self, path: Path) -> None:
        """The log so far, in the shape that `data` takes."""
        files.write_rows(path, self.rows)

    def read(self, path: Path, count: int) -> None:
        """The first `count` rows of a log that was written."""
        for line in path.read_text(encoding="utf-8").split("\n")[:count]:
            self.add(json.loads(line))
