"""Our side of a measurement: the shipped recipes and the engine, called as anybody calls them.

    python -m speed.ours PLAN.json      # started by the harness; speaks speed.protocol

PLAN.json: work, model (a directory), precision, threads, train (full, lora, top), batch (a JSONL that the recipe
reads), ids (what the rollouts read), and what the kind of work needs beside (new, samples, epochs, scratch).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers

from plaudit.models.branch import Branch, ScalarHead
from plaudit.models.load import Model, export, load_model, make_adapter
from plaudit.recipes import dpo, grpo, ppo, reward_model, sft
from plaudit.reward.model import RewardModel
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.training import machine
from plaudit.training import online as online_recipes
from plaudit.training.metrics import Metrics
from speed.positive import positivity
from speed.protocol import Turns

Plan = dict[str, Any]
FOREVER = 100_000
"""Steps of a run that the harness ends when it has seen enough."""


def count_e(samples: list[Sample]) -> list[float]:
    """A reward that costs nothing: how often the letter e stands in a completion. The peer's is the same."""
    return [float(sample.text.count("e")) for sample in samples]


def rollout(plan: Plan, model: Model, turns: Turns) -> None:
    prompts = [row["prompt"] for row in plan["ids"]]
    engine = LocalEngine(model.trunk, model.tokenizer)
    params = SamplingParams(max_new_tokens=plan["new"])
    turns.ready(**facts(model))
    for turn in range(FOREVER):
        drawn = list(engine.sample(prompts, plan["samples"], params, ("speed", turn)))
        turns.done(new_tokens=sum(len(sample.completion_ids) for sample in drawn))


def adapter(plan: Plan, shipped: int) -> dict[str, Any]:
    """The recipe's setting. shipped: how many top blocks it adapts by itself (0: all)."""
    if plan["train"] == "full":
        return {"rank": 0}
    return {"rank": plan.get("rank", 16), "blocks": shipped if plan["train"] == "top" else 0}


def positive(samples: list[Sample]) -> list[float]:
    return [positivity(sample.text) for sample in samples]


def settings(plan: Plan) -> dict[str, Any]:
    """What all recipes are told: where the model is, and to write nothing but the log meanwhile."""
    told = {"precision": plan["precision"], "threads": plan["threads"], "checkpoint_every": FOREVER}
    learning = {"learning_rate": plan.get("learning_rate", 1e-6), "seed": plan.get("seed", 0)}
    return {"model": plan["model"], **learning, **told}


def online(plan: Plan) -> dict[str, Any]:
    steady = {"max_kl": 1e6, "min_entropy": 0.0, "max_length_growth": 1e6, "patience": FOREVER}
    return settings(plan) | {
        "prompts": plan["batch"],
        "steps": plan.get("steps", FOREVER),
        "prompts_per_step": plan.get("at_once", len(plan["ids"])),
        "samples_per_prompt": plan["samples"],
        "max_new_tokens": plan["new"],
        "missing_eos_penalty": None,
        "stop": steady,
    }


def run_sft(plan: Plan, model: Model, out: Path) -> None:
    told = settings(plan) | {"data": [plan["batch"]], "heldout": 0.0, "batch_size": len(plan["ids"])}
    config = sft.Config.model_validate(told | {"epochs": FOREVER, "adapter": adapter(plan, 0)})
    sft.run(config, out, model=model)


def run_dpo(plan: Plan, model: Model, out: Path) -> None:
    told = settings(plan) | {"data": [plan["batch"]], "heldout": 0.0, "prompts_per_step": len(plan["ids"])}
    config = dpo.Config.model_validate(told | {"epochs": FOREVER, "adapter": adapter(plan, 0)})
    dpo.run(config, out, model=model)


def run_reward(plan: Plan, model: Model, out: Path) -> None:
    told = settings(plan) | {"data": [plan["batch"]], "heldout": 0.0, "prompts_per_step": len(plan["ids"])}
    blocks = reward_model.AdapterConfig().blocks if plan["train"] == "top" else 0
    config = reward_model.Config.model_validate(told | {"epochs": FOREVER, "adapter": {"blocks": blocks}})
    reward_model.run(config, out, model=model)


def run_grpo(plan: Plan, model: Model, out: Path) -> None:
    shipped = grpo.Config.model_fields["adapter"].default.blocks
    reward = f"speed.ours:{plan.get('reward', 'count_e')}"
    told = online(plan) | {"reward": reward, "adapter": adapter(plan, shipped)}
    grpo.run(grpo.Config.model_validate(told), out, model=model)


def run_ppo(plan: Plan, model: Model, out: Path) -> None:
    """With a learned reward, as the peer's PPO has it: an adapter on all blocks where everything is trained."""
    trunk, top = model.trunk, reward_model.AdapterConfig()
    blocks = top.blocks if plan["train"] == "top" else 0
    branch = Branch(
        trunk,
        make_adapter(trunk, rank=top.rank, alpha=top.alpha, blocks=blocks, seed=0),
        ScalarHead(trunk.shape.width, dtype=trunk.wide).to(trunk.device).initialise(0),
    )
    reward = out.parent / "reward"
    RewardModel(branch, model).save(reward, {})
    told = online(plan) | {"reward": str(reward), "epochs": plan["epochs"]}
    told["adapter"] = adapter(plan, ppo.AdapterConfig().blocks)
    ppo.run(ppo.Config.model_validate(told), out, model=model)


RECIPES: dict[str, Callable[[Plan, Model, Path], None]] = {
    "sft": run_sft,
    "sft_mixed": run_sft,
    "dpo": run_dpo,
    "reward": run_reward,
    "grpo": run_grpo,
    "ppo": run_ppo,
}


def train(plan: Plan, model: Model, turns: Turns) -> None:
    """A step a turn: the recipe's log is where a step ends, and there it waits for the next turn.

    The recipe computes dpo's reference once, before its first step, for all that it will see; the peer does so in
    every step, so that here each turn computes it again for the step's own pairs. save_every in the plan: so often the
    policy is written, the clock standing still.
    """
    log, reference, asked = Metrics.log, dpo.reference_sums, list[Any]()
    draw, acting, saved = online_recipes.draw, list[Branch](), Path(plan["scratch"]) / "policy"

    def logged(self: Metrics, step: int, values: Any, shown: str) -> None:
        log(self, step, values, shown)
        if acting and step % plan.get("save_every", FOREVER) == 0:
            seconds = turns.seconds()
            export(model, saved, acting[0].adapter, None if acting[0].adapter else acting[0].trunk)
            turns.done(seconds=seconds, saved=str(saved))
        else:
            turns.done()
        if asked:
            reference(*asked)

    def remembered(*given: Any) -> Any:
        asked[:] = given
        return reference(*given)

    def acted(world: Any, policy: Branch, *given: Any, **more: Any) -> Any:
        acting[:] = [policy]
        return draw(world, policy, *given, **more)

    out = Path(plan["scratch"]) / "run"
    out.mkdir(parents=True)
    with (
        patch.object(Metrics, "log", logged),
        patch.object(dpo, "reference_sums", remembered),
        patch.object(online_recipes, "draw", acted),
    ):
        # What every recipe takes by itself at this precision.
        size = sft.Config(data=["-"], precision=plan["precision"]).micro_batch_tokens
        turns.ready(**facts(model), micro_batch_tokens=size)
        RECIPES[plan["work"]](plan, model, out)


def facts(model: Model) -> dict[str, Any]:
    import plaudit

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions = {"plaudit": getattr(plaudit, "__version__", "0"), **versions}
    return {"precision": str(model.trunk.dtype).removeprefix("torch."), "versions": versions}


def main() -> None:
    plan: Plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    device, dtype = machine.prepare(plan["precision"], plan["threads"])
    model = load_model(plan["model"], dtype, device)
    (rollout if plan["work"] in ("rollout", "rollout_group") else train)(plan, model, turns)


if __name__ == "__main__":
    main()
