# mypy: ignore-errors
"""Record what TRL's GRPO and RLOO trainers compute, for tests/algorithms/test_policy_beside_trl.py.

Run again, outside the project's environment:

    python3 -m venv ~/trl && ~/trl/bin/pip install torch==2.13.0 transformers==5.23.0 trl==1.16.0
    ~/trl/bin/python tests/goldens/record_trl_policy.py

Nothing of trl is copied. Real GRPOTrainer and RLOOTrainer objects are built on a tiny Llama; three of their methods
are overridden, so that they return drawn tensors in float64 in place of what a model would: `_generate` (tokens),
`_get_per_token_logps_and_entropies` (log-probabilities) and `_calculate_rewards` (scores, which trl itself would
round to float32). All that stands between is trl's: `_generate_and_score_completions` makes advantages, importance
weights and RLOO's penalised rewards, `_compute_loss` makes the loss and the metrics, and autograd goes back through
it to the log-probabilities. vLLM need not be there: only its sampler's log-probabilities are read.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.rewards import get_soft_overlong_punishment

OUT = Path(__file__).with_name("trl_policy.json")
LENGTHS = (7, 3, 5, 1, 2, 6, 4, 7, 5, 5, 1, 3)
GROUPS, EACH, WIDTH, LONGEST = 3, 4, max(LENGTHS), 9
SCORES = (
    1.0,
    0.25,
    -0.5,
    0.375,
    2.0,
    2.0,
    2.0,
    2.0,
    0.0,
    1.0,
    0.0,
    0.125,
)  # the second group's are all equal


def draw() -> dict[str, torch.Tensor]:
    """Log-probabilities of four policies, near enough to each other that each clip binds for some and not for all."""
    generator = torch.Generator().manual_seed(116)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(len(LENGTHS), WIDTH, generator=generator, dtype=torch.float64)

    old = -normal(1.0).abs() - 0.1
    logprobs, ref, sampled = (old + normal(scale) for scale in (0.3, 0.4, 0.5))
    return {
        "old": old, "logprobs": logprobs, "ref": ref,
        "sampled": sampled.float().double(),  # trl keeps the sampler's in float32
        "mask": torch.arange(WIDTH) < torch.tensor(LENGTHS).unsqueeze(1),
        "scores": torch.tensor(SCORES, dtype=torch.float64),
        "group": torch.arange(GROUPS).repeat_interleave(EACH),
    }  # fmt: skip


DATA = draw()


class Recorded:
    """Before GRPOTrainer or RLOOTrainer among a class's parents: what a model would give is what was drawn."""

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        prompt_ids = [[2, 3] for _ in prompts]
        completion_ids = [[4] * (length - 1) + [1] for length in LENGTHS]
        completions = ["text"] * len(LENGTHS)
        if isinstance(self, RLOOTrainer):
            return prompt_ids, completion_ids, completions
        sampled = [row[:length] for row, length in zip(DATA["sampled"].tolist(), LENGTHS, strict=True)]
        return prompt_ids, completion_ids, None, completions, sampled, {}, None, []

    def _get_per_token_logps_and_entropies(self, model: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        if model is self.ref_model:
            return DATA["ref"], None, None
        if not torch.is_grad_enabled():  # asked for while the batch is made: the policy that drew it
            return DATA["old"], None, None
        self.learned = DATA["logprobs"][self.rows].clone().requires_grad_()
        return self.learned, torch.ones_like(self.learned), None

    def _calculate_rewards(self, *_: Any) -> torch.Tensor:
        return DATA["scores"].unsqueeze(1).clone()


class RecordedGRPO(Recorded, GRPOTrainer):
    pass


class RecordedRLOO(Recorded, RLOOTrainer):
    pass


def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)}, unk_token="w3")),
        pad_token="w0", eos_token="w1",
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).double(), tokenizer


def case(*, rloo: bool = False, vllm: bool = False, parts: int = 1, **settings: Any) -> dict[str, Any]:
    """One generation batch, then the loss of each of its parts and their gradients, in the order of the rows."""
    torch.manual_seed(0)
    model, tokenizer = tiny()
    count = len(LENGTHS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # trl reads the reference from where the policy came from
        args = (RLOOConfig if rloo else GRPOConfig)(
            output_dir=folder, use_cpu=True, bf16=False, report_to="none", num_generations=EACH, num_iterations=2,
            per_device_train_batch_size=count // parts, gradient_accumulation_steps=parts, steps_per_generation=parts,
            max_completion_length=LONGEST, gradient_checkpointing=False, **settings,
        )  # fmt: skip
        trainer = (RecordedRLOO if rloo else RecordedGRPO)(
            model=folder, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
            processing_class=tokenizer, train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * GROUPS}),
        )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = parts
    trainer.use_vllm = vllm
    batch = trainer._generate_and_score_completions([{"prompt": "w2 w3"}] * count)
    record: dict[str, Any] = {"settings": settings, "vllm": vllm, "parts": parts}
    record["advantages"] = batch["advantages"].tolist()
    if vllm:
        record["importance"] = batch["importance_sampling_ratio"].squeeze(-1).tolist()
    losses, gradients = [], []
    for part in torch.arange(count).chunk(parts):
        trainer.rows = part
        rows = {
            name: value[part] if value.dim() else value
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        loss = trainer._compute_loss(trainer.model, rows)
        (gradient,) = torch.autograd.grad(loss, trainer.learned)
        losses.append(loss.item())
        gradients += gradient.tolist()
    record |= {"losses": losses, "gradient": gradients}
    metrics = trainer._metrics["train"]
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "kl"):
        if parts == 1 and name in metrics:
            record[name] = metrics[name][0]
    return record


KL = {
    "beta": 0.07,
    "use_bias_correction_kl": False,
}  # k3 as DeepSeekMath has it; corrected is k3 times the ratio
TRUNCATE = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.5}
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo, two parts": {"loss_type": "grpo", "parts": 2},
    "grpo, scaled by the batch": {"loss_type": "grpo", "scale_rewards": "batch"},
    "grpo, KL": {"loss_type": "grpo", **KL},
    "grpo, corrected KL": {"loss_type": "grpo", "beta": 0.07, "use_bias_correction_kl": True},
    "grpo, vLLM": {"loss_type": "grpo", "vllm": True, **TRUNCATE},
    "bnpo": {"loss_type": "bnpo"},
    "bnpo, KL": {"loss_type": "bnpo", **KL},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dr_grpo, KL": {"loss_type": "dr_grpo", "scale_rewards": "none", **KL},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo, three parts": {"loss_type": "dapo", "epsilon_high": 0.28, "parts": 3},
    "dapo, vLLM": {"loss_type": "dapo", "epsilon_high": 0.28, "vllm": True, **TRUNCATE},
    "gspo": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.06,
    },
    "gspo, KL": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, **KL},
    "weight of a whole completion": {
        "loss_type": "grpo", "vllm": True, "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_max": 1.5,
    },
    "rloo": {"rloo": True, "beta": 0.0},
    "rloo, KL": {"rloo": True, "beta": 0.07},
    "rloo, normalised": {"rloo": True, "beta": 0.0, "normalize_advantages": True},
    "rloo, clip higher": {"rloo": True, "beta": 0.0, "epsilon": 0.1, "epsilon_high": 0.5},
}  # fmt: skip


def overlong() -> list[dict[str, Any]]:
    lengths = (1, 3, 16384, 16385, 17408, 18432, 20479, 20480, 30000)
    return [
        {
            "longest": longest, "buffer": buffer, "lengths": lengths,
            "penalty": get_soft_overlong_punishment(longest, buffer)([[4] * length for length in lengths]),
        }
        for longest, buffer in ((20480, 4096), (4, 4), (17500, 1000))
    ]  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    record = {
        "peer": f"trl {trl.__version__}", "torch": torch.__version__, "transformers": transformers.__version__,
        "longest": LONGEST, "data": {name: value.tolist() for name, value in DATA.items()},
        "cases": {name: case(**settings) for name, settings in CASES.items()}, "overlong": overlong(),
    }  # fmt: skip
    for name, result in record["cases"].items():
        if "clip_ratio/low_mean" in result:
            low, high = result["clip_ratio/low_mean"], result["clip_ratio/high_mean"]
            assert 0 < low < 0.5, f"{name}: the lower clip binds for {low}; take another seed"
            assert 0 < high < 0.5, f"{name}: the upper clip binds for {high}; take another seed"
        if result["vllm"]:
            weights = torch.tensor(result["importance"])
            assert 0 < (weights == 1.5).double().mean() < 1, f"{name}: the cap never or always binds"
    OUT.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, {len(record['cases'])} cases")


if __name__ == "__main__":
    main()
