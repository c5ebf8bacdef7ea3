"""The peer's side of benchmarks/rewards.py: trl's RewardTrainer, run by the interpreter of an environment of its own.

    VENV/bin/python benchmarks/rewards_trl.py PLAN.json      # `rewards.py trl` writes the plan and calls this

The environment holds trl 1.16.0 and peft; nothing of Plaudit is imported. PLAN.json names the model's directory, the
file of folds, what is still to do ([seed, fold] each) and the settings. A line of the file of folds is one
comparison: its number, the ids of the chosen and of the rejected text, whole as Plaudit reads them, and the fold in
which each seed leaves it out. What comes out is a line a fold: the scores of the comparisons left out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

Rows = list[dict[str, Any]]


def trained(rows: Rows, plan: dict[str, Any], seed: int) -> RewardTrainer:
    """One epoch on these comparisons; what the plan does not name is trl's own default. Activations are not computed
    twice (`gradient_checkpointing`), which would change no number and take longer."""
    config = RewardConfig(
        output_dir=plan["work"],
        num_train_epochs=plan["epochs"],
        per_device_train_batch_size=plan["batch"],
        learning_rate=plan["learning_rate"],
        seed=seed,
        max_length=None,
        gradient_checkpointing=False,
        bf16=plan["bfloat16"],
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=20,
        disable_tqdm=True,
    )
    adapter = LoraConfig(
        task_type="SEQ_CLS",
        r=plan["rank"],
        lora_alpha=plan["alpha"],
        lora_dropout=0.0,
        target_modules=plan["linears"],
        layers_to_transform=plan["layers"],
    )
    data = Dataset.from_list([{key: row[key] for key in ("chosen_ids", "rejected_ids")} for row in rows])
    trainer = RewardTrainer(
        model=plan["model"],
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
        peft_config=adapter,
    )
    trainer.train()
    return trainer


@torch.no_grad()
def scores(trainer: RewardTrainer, rows: Rows, bfloat16: bool) -> dict[int, list[float]]:
    """By comparison, the scores of the chosen and of the rejected text; a text that comes again is scored once."""
    wanted = {tuple(row[key]) for row in rows for key in ("chosen_ids", "rejected_ids")}
    texts = sorted(wanted, key=lambda ids: (len(ids), ids))
    model = trainer.model.eval()
    pad = model.config.pad_token_id
    found: dict[tuple[int, ...], float] = {}
    for at in range(0, len(texts), 16):
        batch = texts[at : at + 16]
        width = max(map(len, batch))
        ids = torch.tensor([[*one, *[pad] * (width - len(one))] for one in batch])
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found |= dict(zip(batch, logits.float().squeeze(-1).tolist(), strict=True))
    return {row["number"]: [found[tuple(row[k])] for k in ("chosen_ids", "rejected_ids")] for row in rows}


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if trl.__version__ != plan["trl"]:
        sys.exit(f"this is trl {trl.__version__}, the study is of {plan['trl']}")
    torch.set_num_threads(plan["threads"] or len(os.sched_getaffinity(0)))
    rows = [json.loads(line) for line in Path(plan["folds"]).read_text(encoding="utf-8").splitlines()]
    for seed, fold in plan["todo"]:
        begun, cpu = time.perf_counter(), time.process_time()
        inside, outside = (
            [r for r in rows if (r["folds"][str(seed)] == fold) is out] for out in (False, True)
        )
        trainer = trained(inside, plan, seed)
        given = scores(trainer, outside, plan["bfloat16"])
        line = {
            "seed": seed,
            "fold": fold,
            "scores": given,
            "minutes": round((time.perf_counter() - begun) / 60, 2),
            "cpu_minutes": round((time.process_time() - cpu) / 60, 2),
            "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        }
        with Path(plan["out"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
