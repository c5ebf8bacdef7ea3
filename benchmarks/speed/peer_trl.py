"""The peer's side of training: trl's SFT, reward, DPO and GRPO trainers, each step a turn.

    python -m speed.peer_trl PLAN.json

What the plan does not name is trl's own default, but for gradient checkpointing, which is off: it changes no number
and takes longer.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from speed.positive import positivity
from speed.protocol import Turns

Plan = dict[str, Any]
FOREVER = 100_000


class Turned(TrainerCallback):  # type: ignore[misc]
    """A turn begins where the harness asks for it and ends where the trainer says that a step has."""

    def __init__(self, turns: Turns, plan: Plan) -> None:
        self.turns, self.plan = turns, plan

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        versions = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        }
        self.turns.ready(versions=versions | {"trl": trl.__version__})

    def on_step_end(
        self, _: Any, state: Any, *__: Any, model: Any, processing_class: Any, **___: Any
    ) -> None:
        """save_every in the plan: so often the policy is written whole, the clock standing still."""
        if state.global_step % self.plan.get("save_every", FOREVER):
            self.turns.done()
            return
        seconds, saved = self.turns.seconds(), Path(self.plan["scratch"]) / "policy"
        whole = copy.deepcopy(model)
        (whole.merge_and_unload() if isinstance(whole, peft.PeftModel) else whole).save_pretrained(saved)
        processing_class.save_pretrained(saved)
        self.turns.done(seconds=seconds, saved=str(saved))


class GivenIds(trl.DPOTrainer):  # type: ignore[misc]
    """Reads ids as they are given: trl would tokenise prompt and completion as one text."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def count_e(completions: list[str], **_: Any) -> list[float]:
    """As ours."""
    return [float(text.count("e")) for text in completions]


def positive(completions: list[str], **_: Any) -> list[float]:
    """As ours."""
    return [positivity(text) for text in completions]


REWARDS = {"count_e": count_e, "positive": positive}


def arguments(plan: Plan) -> dict[str, Any]:
    return {
        "output_dir": plan["scratch"],
        "max_steps": plan.get("steps", FOREVER),
        "per_device_train_batch_size": plan.get("at_once", len(plan["ids"])) * plan["samples"],
        "learning_rate": plan.get("learning_rate", 1e-6),
        "bf16": plan["precision"] == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": plan.get("seed", 0),
    }


def lora(plan: Plan, kind: str) -> dict[str, Any]:
    """peft_config for what ours adapts, or nothing."""
    if plan["train"] == "full":
        return {}
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    layers = plan["layers"] or None
    config = peft.LoraConfig(
        task_type=kind,
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=linears,
        layers_to_transform=layers,
    )
    return {"peft_config": config}


def trainer_of(plan: Plan) -> Any:
    work, told = plan["work"], arguments(plan)
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    load = {"dtype": torch.float32}
    if work in ("sft", "sft_mixed"):
        data = Dataset.from_list([{"input_ids": row["prompt"] + row["completion"]} for row in plan["ids"]])
        return trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(plan["model"], **load),
            args=trl.SFTConfig(max_length=None, **told),
            train_dataset=data,
            processing_class=tokenizer,
            **lora(plan, "CAUSAL_LM"),
        )
    if work == "reward":
        rows = [
            {f"{side}_ids": row["prompt"] + row[side] for side in ("chosen", "rejected")}
            for row in plan["ids"]
        ]
        model = AutoModelForSequenceClassification.from_pretrained(plan["model"], num_labels=1, **load)
        model.config.pad_token_id = tokenizer.pad_token_id
        return trl.RewardTrainer(
            model=model,
            args=trl.RewardConfig(max_length=None, **told),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **lora(plan, "SEQ_CLS"),
        )
    model = AutoModelForCausalLM.from_pretrained(plan["model"], **load)
    if work == "dpo":
        data = Dataset.from_list([{f"{name}_ids": ids for name, ids in row.items()} for row in plan["ids"]])
        adapted = lora(plan, "CAUSAL_LM")
        whole = {"ref_model": AutoModelForCausalLM.from_pretrained(plan["model"], **load)}
        return GivenIds(
            model=model,
            args=trl.DPOConfig(max_length=None, **told),
            train_dataset=data,
            processing_class=tokenizer,
            **(adapted or whole),
        )
    tokenizer.padding_side = "left"
    lines = Path(plan["batch"]).read_text(encoding="utf-8").splitlines()
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=REWARDS[plan.get("reward", "count_e")],
        args=trl.GRPOConfig(
            num_generations=plan["samples"],
            max_completion_length=plan["new"],
            beta=0.04,
            temperature=1.0,
            top_k=0,
            **told,
        ),
        train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=tokenizer,
        **lora(plan, "CAUSAL_LM"),
    )


def main() -> None:
    plan: Plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    torch.set_num_threads(plan["threads"])
    trainer = trainer_of(plan)
    trainer.add_callback(Turned(turns, plan))
    trainer.train()


if __name__ == "__main__":
    main()
