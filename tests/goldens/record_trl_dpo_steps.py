# mypy: ignore-errors
"""Record the losses of three steps of TRL's DPOTrainer, for tests/recipes/test_dpo_beside_trl.py.

Run again, outside the project's environment:

    python3 -m venv ~/trl && ~/trl/bin/pip install torch==2.13.0 trl==1.16.0
    ~/trl/bin/python tests/goldens/record_trl_dpo_steps.py

Nothing of trl is copied: the whole trainer runs, in float32, on a Llama whose weights are drawn from a seed in the
order of their names, so that the test draws the same. Recorded are the model's shape, the pairs' ids and the losses.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = Path(__file__).with_name("trl_dpo_steps.json")
SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}  # fmt: skip
SEED, STD, RATE, BETA, EPS, STEPS = 3, 0.2, 1e-3, 0.1, 1e-5, 3
LENGTHS = [(5, 4, 7), (9, 6, 2), (3, 8, 8), (12, 3, 5)]  # prompt, chosen, rejected


class InOrder(trl.DPOTrainer):
    """The pairs as they are given, as ids."""

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset

    _tokenize_dataset = _prepare_dataset

    def _get_train_sampler(self, *_, **__):
        return SequentialSampler(self.train_dataset)


def model() -> LlamaForCausalLM:
    made = LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in sorted(made.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator) * STD
            parameter.copy_(draw + 1 if "norm" in name else draw)
    return made


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    pairs = [
        {
            name: torch.randint(2, SHAPE["vocab_size"], (length,), generator=generator).tolist()
            for name, length in zip(("prompt_ids", "chosen_ids", "rejected_ids"), lengths, strict=True)
        }
        for lengths in LENGTHS
    ]
    words = {f"w{i}": i for i in range(SHAPE["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="w0", eos_token="w1"
    )
    policy = model()
    with tempfile.TemporaryDirectory() as directory:
        settings = trl.DPOConfig(
            output_dir=directory, per_device_train_batch_size=len(pairs), max_steps=STEPS, learning_rate=RATE,
            lr_scheduler_type="constant", adam_epsilon=EPS, weight_decay=0.0, max_grad_norm=1.0, beta=BETA,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
            max_length=None, disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = InOrder(
            model=policy, ref_model=copy.deepcopy(policy), args=settings,
            train_dataset=Dataset.from_list(pairs * STEPS), processing_class=tokenizer,
        )  # fmt: skip
        losses = []
        compute = trainer.compute_loss

        def recorded(*args, **kwargs):
            found = compute(*args, **kwargs)
            losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
            return found

        trainer.compute_loss = recorded
        trainer.train()
    record = {
        "peer": f"trl {trl.__version__}", "torch": torch.__version__, "shape": SHAPE, "seed": SEED, "std": STD,
        "learning_rate": RATE, "beta": BETA, "eps": EPS, "pairs": pairs, "losses": losses,
    }  # fmt: skip
    OUT.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"{OUT.name}: {losses}")


if __name__ == "__main__":
    main()
