"""The peer's side of rollouts: transformers' generate, in an environment where nothing of Plaudit is installed.

python -m speed.peer_transformers PLAN.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from speed.protocol import Turns


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    torch.set_num_threads(plan["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        plan["model"], dtype=getattr(torch, plan["precision"])
    ).eval()
    ids = torch.tensor([row["prompt"] for row in plan["ids"] for _ in range(plan["samples"])])
    mask = torch.ones_like(ids)
    turns.ready(versions={"torch": torch.__version__, "transformers": transformers.__version__})
    while True:
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=plan["new"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            )
        turns.done(new_tokens=int(out.numel() - ids.numel()))


if __name__ == "__main__":
    main()
