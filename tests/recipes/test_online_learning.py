"""Every recipe that learns from its own samples learns: a rule whose best is known, on a small model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runs import changed, judged, peaked_model, rows, shipped, write_prompts

STEPS, SEEDS = 20, (0, 1, 2)
RATES = {"reinforce_plus_plus": 5e-3, "dapo": 2e-4}
RATES |= dict.fromkeys(("dr_grpo", "gspo", "rejection", "online_dpo"), 3e-4)
"""Whitened over all tokens the slope is small; without a price of the KL a step is better short. Else 2e-3."""


def interval(numbers: Sequence[float]) -> str:
    """The mean of three with its 95 % interval, Student's."""
    half = 4.303 * statistics.stdev(numbers) / math.sqrt(3)
    return f"{statistics.mean(numbers):.3f} (+-{half:.3f})"


@pytest.mark.proof
@pytest.mark.parametrize(
    "name",
    [
        "reinforce",
        "rloo",
        "reinforce_plus_plus",
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "rejection",
        "online_dpo",
    ],
)
def test_the_reward_rises_and_the_kl_stays_in_its_range(
    tmp_path: Path, say: Callable[[str], None], name: str
) -> None:
    """A third of the tokens are wanted ones by chance, and 1 is the best that there is; at the end the policy still
    chooses: no run has stopped, and none has collapsed."""
    peaked, prompts = peaked_model(tmp_path), write_prompts(tmp_path)
    begun = time.process_time()
    found: dict[str, list[float]] = {"reward before": [], "reward": [], "kl": [], "entropy": []}
    for seed in SEEDS:
        recipe, config = shipped(
            name, model=peaked, prompts=prompts, reward="rules:fourths", seed=seed, steps=STEPS, prompts_per_step=5,
            samples_per_prompt=12, max_new_tokens=8, missing_eos_penalty=None, overlong_buffer=0, epochs=2,
            learning_rate=RATES.get(name, 2e-3), adapter={"rank": 8, "blocks": 0}, precision="float32", threads=1,
            stop={"max_kl": 3.0}, checkpoint_every=STEPS,
            clip=0.05 if name == "gspo" else 0.2, clip_high=0.08 if name == "gspo" else None,
        )  # fmt: skip
        summary = recipe.run(config, tmp_path / str(seed))
        logged = rows(tmp_path / str(seed))
        assert summary["stopped"] is None, seed
        assert all(-0.05 < row["kl"] < 2.0 for row in logged), seed
        found["reward before"].append(logged[0]["reward"])
        found["reward"].append(sum(row["reward"] for row in logged[-3:]) / 3)
        for figure in ("kl", "entropy"):
            found[figure].append(logged[-1][figure])
    of_seeds = {figure: [round(x, 3) for x in numbers] for figure, numbers in found.items()}
    rise = [after - before for before, after in zip(found["reward before"], found["reward"], strict=True)]
    seconds = f"{time.process_time() - begun:.1f} s of CPU"
    say(f"{name}: rise {interval(rise)}, kl {interval(found['kl'])}; {of_seeds}, {seconds}")
    assert max(found["reward before"]) < 0.45
    assert min(found["reward"]) > 0.7
    assert min(found["kl"]) > 0.2
    assert min(found["entropy"]) > 0.1


@pytest.mark.proof
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_people_s_scores_alone_make_the_policy_better(
    tmp_path: Path, say: Callable[[str], None], seed: int
) -> None:
    """Sixteen completions, judged once and never drawn again: the policy then draws better ones itself."""
    peaked = peaked_model(tmp_path)
    settings = judged(tmp_path, model=peaked, n=16, seed=seed)
    recipe, config = shipped(
        "reinforce_feedback", model=peaked, seed=seed, steps=15, prompts_per_step=5, learning_rate=3e-4,
        adapter={"rank": 8, "blocks": 0}, precision="float32", threads=1, checkpoint_every=15, **settings,
    )  # fmt: skip
    summary = recipe.run(config, tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert summary["stopped"] is None
    rewards, drawn_kl = list[float](), 0.0
    for start in (None, str(tmp_path / "run" / "adapter")):
        measured = shipped(
            "reinforce", model=peaked, start=start, prompts=write_prompts(tmp_path), reward="rules:fourths",
            seed=seed + 100, steps=1, prompts_per_step=5, samples_per_prompt=60, max_new_tokens=6, learning_rate=0.0,
            adapter={"rank": 8, "blocks": 0}, precision="float32", threads=1, missing_eos_penalty=None,
        )[1]  # fmt: skip
        place = tmp_path / f"measured-{len(rewards)}"
        recipe.run(changed(measured), place)
        rewards.append(rows(place)[0]["reward"])
        drawn_kl = rows(place)[0]["kl"]
    moved = f"reward {rewards[0]:.3f} -> {rewards[1]:.3f}, kl {drawn_kl:.3f}, logged {logged[-1]['kl']:.3f}"
    say(f"people's scores, seed {seed}: {moved}")
    assert rewards[1] > rewards[0] + 0.1
    assert (
        0.05 < drawn_kl < logged[-1]["kl"] < 1.0
    )  # it reads high where the policy has learned these very tokens
