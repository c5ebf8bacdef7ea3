"""The peer's side of PPO: the trainer of trl 1.12, the last release that has one; a step (all epochs) a turn.

    python -m speed.peer_ppo PLAN.json

Policy, reference, value and reward are models of their own, all of the same directory. With LoRA (train other than
full) policy and value are adapters, and the policy without its adapter is the reference.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import peft
import torch
import transformers
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from speed.protocol import Turns

Plan = dict[str, Any]
EPISODES = 1_000_000


class Turned(TrainerCallback):  # type: ignore[misc]
    """A turn begins where the harness asks for it and ends where the trainer says that a step has."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        versions = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        }
        self.turns.ready(versions=versions | {"trl": trl.__version__})

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.turns.done()


def config_of(plan: Plan) -> PPOConfig:
    return PPOConfig(
        output_dir=plan["scratch"],
        per_device_train_batch_size=len(plan["ids"]),
        local_rollout_forward_batch_size=len(plan["ids"]),
        num_mini_batches=1,
        num_ppo_epochs=plan["epochs"],
        total_episodes=EPISODES,
        response_length=plan["new"],
        temperature=1.0,
        kl_coef=0.05,
        num_sample_generations=0,
        learning_rate=1e-6,
        bf16=plan["precision"] == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def lora(kind: str, layers: list[int]) -> peft.LoraConfig:
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.LoraConfig(
        task_type=kind, r=16, lora_alpha=32, lora_dropout=0.0, target_modules=linears,
        layers_to_transform=layers or None,
    )  # fmt: skip


def main() -> None:
    plan: Plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    torch.set_num_threads(plan["threads"])
    tokenizer = AutoTokenizer.from_pretrained(plan["model"], padding_side="left")

    def scalar() -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(
            plan["model"], num_labels=1, dtype=torch.float32
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    def language() -> Any:
        return AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)

    value: Any = scalar()
    adapted: dict[str, Any] = {"ref_model": language()}
    if plan["train"] != "full":
        adapted = {"ref_model": None, "peft_config": lora("CAUSAL_LM", plan["layers"])}
        value = peft.get_peft_model(value, lora("SEQ_CLS", plan["value_layers"])).base_model.model
    trainer = PPOTrainer(
        args=config_of(plan),
        processing_class=tokenizer,
        model=language(),
        reward_model=scalar(),
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": row["prompt"]} for row in plan["ids"]]),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Turned(turns)],
        **adapted,
    )
    trainer.train()


if __name__ == "__main__":
    main()
