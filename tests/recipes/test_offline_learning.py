"""What learns from judgements that are there learns on three seeds: on prompts never trained on, with an interval.

The same tasks as in the tests of each recipe, which run one seed. A seed is another adapter, another order and other
prompts held out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_bandit
import test_dpo
import test_kto
import test_reward_model

from plaudit.recipes import bandit, dpo, kto, reward_model

SEEDS = (0, 1, 2)
LOSSES = ("dpo", "robust", "ipo", "simpo", "orpo")
NAMES = (*LOSSES, "kto", "reward_model", "bandit")


def heldout(name: str, seed: int, directory: Path) -> float:
    """The share that is right of what was held out; of the bandit, what its choices earn, 1 at best."""
    directory.mkdir()
    common: dict[str, Any] = {"seed": seed, "heldout": 0.2, "precision": "float32", "threads": 1}
    if name in LOSSES:
        data = test_dpo.write(directory / "feelings.jsonl", test_dpo.feelings(160))
        own = {"loss": name, "label_smoothing": 0.1 if name == "robust" else 0.0, "prompts_per_step": 8}
        settings = common | own | {"epochs": 3, "learning_rate": 3e-3}
        return float(dpo.run(test_dpo.config(data, **settings), directory / "run")["heldout_accuracy"])
    if name == "kto":
        data = test_kto.write(directory / "feelings.jsonl", test_kto.feelings(210))
        own = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "undesirable_weight": 2.0}
        return float(kto.run(test_kto.config(data, **common, **own), directory / "run")["heldout_accuracy"])
    if name == "reward_model":
        data = test_reward_model.write(directory / "data.jsonl", test_reward_model.preferences(120))
        own = {
            "model": "tiny", "data": [data], "adapter": {"rank": 4, "alpha": 8.0, "blocks": 2}, "epochs": 3,
            "learning_rate": 5e-3,
        }  # fmt: skip
        settings_of = reward_model.Config.model_validate(common | own)
        return float(reward_model.run(settings_of, directory / "run")["heldout_accuracy"])
    chosen = test_bandit.online(
        directory, rounds=12, contexts_per_round=45, steps_per_round=15, learning_rate=3e-3, adapter={"rank": 4},
        seed=seed,
    )  # fmt: skip
    return float(bandit.run(chosen, directory / "run")["heldout_reward"])


@pytest.mark.proof
@pytest.mark.parametrize("name", NAMES)
def test_three_seeds_learn_what_is_better(tmp_path: Path, say: Callable[[str], None], name: str) -> None:
    """A coin is right half the time; of two labels it earns about a half."""
    found = [heldout(name, seed, tmp_path / str(seed)) for seed in SEEDS]
    mean, half = statistics.mean(found), 4.303 * statistics.stdev(found) / math.sqrt(3)  # Student's, 95 %
    say(f"{name}: {mean:.3f} (+-{half:.3f}); {[round(x, 3) for x in found]}")
    assert min(found) > 0.7
    assert mean - half > 0.5
