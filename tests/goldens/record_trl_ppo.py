# mypy: ignore-errors
"""Record what TRL's PPO and reward trainers compute, for tests/algorithms/test_beside_trl.py to compare with ours.

Run again, outside the project's environment:

    python3 -m venv ~/trl && ~/trl/bin/pip install torch==2.13.0 trl==1.12.0
    ~/trl/bin/python tests/goldens/record_trl_ppo.py

trl 1.12.0 is the newest release that has PPO (trl.experimental.ppo). Nothing of it is copied: its own
PPOTrainer.train takes one rollout and three epochs on a tiny random Llama in float64, and its own
RewardTrainer.compute_loss reads given logits. PPO's formulas stand inline in `train`, so its `masked_mean` and
`masked_whiten` are wrapped: at each call the wrapper reads the caller's tensors, and asks autograd to keep the
gradients of the log-probabilities and the values.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trl
import trl.experimental.ppo.ppo_trainer as peer
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.trainer.reward_trainer import RewardTrainer

OUT = Path(__file__).with_name("trl_ppo.json")
SEED, WORDS, EOS, PAD, EPISODES, LENGTH = 9, 12, 1, 0, 8, 6
ROLLOUT = ("logprobs", "ref_logprobs", "values", "padding_mask", "padding_mask_p1", "kl", "scores", "returns")
STEP = ("new_logprobs", "mb_logprobs", "mb_advantage", "vpred", "mb_values", "mb_return", "ratio")


def plain(value: Any) -> Any:
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value


def tiny_models() -> tuple[LlamaForCausalLM, ...]:
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS,
        initializer_range=0.5, num_labels=1,
    )  # fmt: skip
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    value, reward = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
    return tuple(model.double() for model in (policy, reference, value, reward))


def run_ppo() -> dict[str, Any]:
    """One rollout, three epochs of one batch each: the tensors that went in and came out."""
    record: dict[str, Any] = {"rollout": {}, "whiten": [], "steps": []}
    mean, whiten = peer.masked_mean, peer.masked_whiten

    def watched_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        train = sys._getframe(1).f_locals
        record["rollout"] = {name: plain(train[name]) for name in ROLLOUT if name in train}
        out = whiten(values, mask, shift_mean)
        record["whiten"].append(
            {"values": plain(values), "mask": plain(mask), "shift_mean": shift_mean, "out": plain(out)}
        )
        return out

    def watched_mean(values: torch.Tensor, mask: torch.Tensor, axis: bool | None = None) -> torch.Tensor:
        out = mean(values, mask, axis)
        train = sys._getframe(1).f_locals
        if "new_logprobs" not in train:  # called by masked_whiten
            return out
        if values is train.get("vf_loss_max"):
            train["vpred"].retain_grad()
            train["new_logprobs"].retain_grad()
        elif "pg_loss" in train and not torch.is_grad_enabled():  # after the backward pass
            step = {name: plain(train[name]) for name in STEP}
            step["mask"] = plain(~train["padding_mask"][train["micro_batch_inds"]])
            step["mask_p1"] = plain(~train["padding_mask_p1"][train["micro_batch_inds"]])
            step |= {name: plain(train[name]) for name in ("pg_loss", "vf_loss", "vf_clipfrac")}
            step["pg_clipfrac"] = plain(out)
            step["grad_new_logprobs"] = plain(train["new_logprobs"].grad)
            step["grad_vpred"] = plain(train["vpred"].grad)
            record["steps"].append(step)
        return out

    words = {f"w{i}": i for i in range(WORDS)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")), pad_token="w0", eos_token="w1"
    )
    tokenizer.padding_side = "left"
    policy, reference, value, reward = tiny_models()
    prompts = Dataset.from_dict({"input_ids": [[2, 3 + i % 9, 3 + (2 * i) % 9] for i in range(EPISODES)]})
    peer.masked_mean, peer.masked_whiten = watched_mean, watched_whiten
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = PPOConfig(
                output_dir=folder, use_cpu=True, bf16=False, seed=SEED, learning_rate=0.02, total_episodes=EPISODES,
                per_device_train_batch_size=EPISODES, gradient_accumulation_steps=1, num_mini_batches=1,
                num_ppo_epochs=3, response_length=LENGTH, stop_token="eos", num_sample_generations=0,
                whiten_rewards=True, kl_coef=0.05, gamma=0.97, lam=0.9, cliprange=0.2, cliprange_value=0.2,
                vf_coef=0.1, report_to="none", save_strategy="no", lr_scheduler_type="constant",
                gradient_checkpointing=False, disable_tqdm=True,
            )  # fmt: skip
            PPOTrainer(
                args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
                value_model=value, train_dataset=prompts,
            ).train()  # fmt: skip
    finally:
        peer.masked_mean, peer.masked_whiten = mean, whiten
    record["config"] = {
        name: getattr(config, name)
        for name in ("kl_coef", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef")
    }
    record["steps"] = [record["steps"][0], record["steps"][-1]]
    return record


def run_reward() -> list[dict[str, Any]]:
    """RewardTrainer.compute_loss on given logits, chosen above and rejected below."""
    cases = []
    for seed, coefficient in ((0, None), (1, None)):
        torch.manual_seed(seed)
        logits = (2 * torch.randn(10, 1, dtype=torch.float64)).requires_grad_()
        metrics: dict[str, Any] = {"eval": {"min_reward": [], "mean_reward": [], "max_reward": [],
                                            "accuracy": [], "margin": []}}  # fmt: skip
        same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=coefficient),
            accelerator=same, _metrics=metrics, _total_train_tokens=0,
        )  # fmt: skip
        loss = RewardTrainer.compute_loss(
            trainer, lambda logits=logits, **_: SimpleNamespace(logits=logits), {"input_ids": None}
        )
        loss.backward()
        cases.append(
            {
                "chosen": plain(logits[:5, 0]), "rejected": plain(logits[5:, 0]), "loss": plain(loss),
                "grad_chosen": plain(logits.grad[:5, 0]), "grad_rejected": plain(logits.grad[5:, 0]),
                "accuracy": metrics["eval"]["accuracy"][0], "margin": metrics["eval"]["margin"][0],
            }
        )  # fmt: skip
    return cases


def main() -> None:
    set_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.set_num_threads(1)
    record = {"peer": f"trl {trl.__version__}", "torch": torch.__version__, "ppo": run_ppo()}
    record["reward"] = run_reward()
    lengths = [row.count(False) for row in record["ppo"]["rollout"]["padding_mask"]]
    assert min(lengths) >= 1, f"a completion without a token: {lengths}; take another seed"
    assert len(set(lengths)) > 2, f"lengths hardly differ: {lengths}; take another seed"
    last = record["ppo"]["steps"][-1]
    assert 0 < last["pg_clipfrac"] < 1, last["pg_clipfrac"]
    assert 0 < last["vf_clipfrac"] < 1, last["vf_clipfrac"]
    OUT.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, lengths {lengths},"
          f" clip fractions {last['pg_clipfrac']:.3f} and {last['vf_clipfrac']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
