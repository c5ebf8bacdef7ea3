# mypy: ignore-errors
"""Record what TRL's preference trainers compute, for tests/algorithms/test_preference_beside_trl.py.

Run again, outside the project's environment:

    python3 -m venv ~/trl && ~/trl/bin/pip install torch==2.13.0 trl==1.16.0
    ~/trl/bin/python tests/goldens/record_trl_preference.py

Nothing of trl is copied. DPOTrainer._compute_loss and KTOTrainer._compute_loss run as they are, on a trainer that
holds settings only and a model that answers with recorded log-probabilities; ORPOTrainer's and CPOTrainer's
get_batch_loss_metrics run on a model that answers with recorded logits. All is float64: ORPO casts its means to
float32, so `Tensor.float` gives doubles while it runs. Recorded are losses, metrics and the gradients that autograd
finds with respect to what the model answered.

trl 1.16 has no label smoothing in its sigmoid DPO. Its `aot` loss, of one pair at a time, is the conservative DPO
loss, and is what `cdpo` records.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

OUT = Path(__file__).with_name("trl_preference.json")
PROMPT = 2  # tokens of every prompt in the cases of log-probabilities
CHOSEN, REJECTED = [5, 2, 7, 1, 4], [3, 6, 7, 2, 1]  # tokens of the completions
BETA, SMOOTHING = 0.3, 0.15


def plain(value: Any) -> Any:
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value


def gathered() -> SimpleNamespace:
    return SimpleNamespace(
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        unwrap_model=lambda m: m,
        device=torch.device("cpu"),
    )


def completion_mask(lengths: list[int]) -> torch.Tensor:
    width = PROMPT + max(lengths)
    return torch.tensor([[int(PROMPT <= i < PROMPT + n) for i in range(width)] for n in lengths])


def log_probs(mask: torch.Tensor, seed: int, shift: float = 0.0) -> torch.Tensor:
    """[rows, columns - 1], as trl's fused head gives them: 0 where no completion token is predicted."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(mask[:, 1:].shape, generator=generator, dtype=torch.float64)
    return -(0.05 + 3 * draw + shift) * mask[:, 1:]


def answer(values: torch.Tensor) -> SimpleNamespace:
    """What a model with trl's fused head returns."""
    rest = torch.zeros_like(values)
    return SimpleNamespace(log_probs=values, entropy=rest, mean_logits=rest, is_top1=rest.bool())


class Recorded:
    """A model in training that gives recorded answers, one after another."""

    training = True

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.answers.pop(0)


def dpo(loss_type: str, rows: list[int], beta: float, smoothing: float) -> dict[str, Any]:
    """DPOTrainer._compute_loss of these pairs."""
    lengths = [CHOSEN[i] for i in rows] + [REJECTED[i] for i in rows]
    places = rows + [len(CHOSEN) + i for i in rows]
    mask = completion_mask(CHOSEN + REJECTED)[places]
    values = log_probs(completion_mask(CHOSEN + REJECTED), seed=1)[places].requires_grad_()
    reference = log_probs(completion_mask(CHOSEN + REJECTED), seed=2, shift=0.2)[places].sum(1)
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=gathered(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0],
        beta=beta, label_smoothing=smoothing, use_weighting=False, _metrics=metrics, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": reference[: len(rows)], "ref_rejected_logps": reference[len(rows) :],
    }  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, Recorded(answer(values)), inputs, False)
    loss.backward()
    sums, slopes = values.sum(1), values.grad[:, PROMPT - 1]  # one slope for all tokens of a sum
    assert torch.equal(values.grad * mask[:, 1:], slopes[:, None] * mask[:, 1:])
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
    half = len(rows)
    return {
        "loss_type": loss_type, "beta": beta, "label_smoothing": smoothing,
        "chosen": plain(sums[:half]), "rejected": plain(sums[half:]),
        "ref_chosen": plain(reference[:half]), "ref_rejected": plain(reference[half:]),
        "chosen_tokens": lengths[:half], "rejected_tokens": lengths[half:],
        "loss": plain(loss), "grad_chosen": plain(slopes[:half]), "grad_rejected": plain(slopes[half:]),
        "metrics": {name: metrics["train"][name][0] for name in names},
    }  # fmt: skip


def kto(desirable: list[bool], shift: float, weights: tuple[float, float]) -> dict[str, Any]:
    """KTOTrainer._compute_loss; shift moves the mismatched pairs, and with them the baseline, below or above 0."""
    lengths = CHOSEN + REJECTED[:2]
    mask, mismatched = completion_mask(lengths), completion_mask(lengths[-1:] + lengths[:-1])
    values = log_probs(mask, seed=3).requires_grad_()
    reference = log_probs(mask, seed=4).sum(1)
    kl_values, kl_reference = log_probs(mismatched, seed=5), log_probs(mismatched, seed=6, shift=shift).sum(1)
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=gathered(), aux_loss_enabled=False, calculate_KL=True,
        precompute_ref_logps=True, loss_type="kto", beta=BETA, desirable_weight=weights[0],
        undesirable_weight=weights[1], _metrics=metrics, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(trainer, model, batch)
    inputs = {"label": torch.tensor(desirable), "ref_logps": reference, "ref_KL_logps": kl_reference}
    for prefix, of in (("", mask), ("KL_", mismatched)):
        inputs[f"{prefix}input_ids"] = torch.zeros_like(of)
        inputs[f"{prefix}attention_mask"] = torch.ones_like(of)
        inputs[f"{prefix}completion_mask"] = of
    model = Recorded(answer(kl_values), answer(values))  # trl asks for the mismatched pairs first
    loss = KTOTrainer._compute_loss(trainer, model, inputs, False)
    loss.backward()
    slopes = values.grad[:, PROMPT - 1]
    found = {
        name: x[0]
        for name, x in metrics["train"].items()
        if name in ("kl", "rewards/chosen", "rewards/rejected")
    }
    return {
        "beta": BETA, "desirable_weight": weights[0], "undesirable_weight": weights[1], "desirable": desirable,
        "logprobs": plain(values.sum(1)), "ref_logprobs": plain(reference),
        "kl_logprobs": plain(kl_values.sum(1)), "kl_ref_logprobs": plain(kl_reference),
        "loss": plain(loss), "grad": plain(slopes), "metrics": found,
    }  # fmt: skip


def from_logits(
    trainer_class: Any,
    settings: dict[str, Any],
    prompt: int,
    chosen: list[int],
    rejected: list[int],
    seed: int,
) -> dict[str, Any]:
    """ORPOTrainer's or CPOTrainer's get_batch_loss_metrics on recorded logits."""
    words, batch = 7, {}
    generator = torch.Generator().manual_seed(seed)
    for side, lengths in (("chosen", chosen), ("rejected", rejected)):
        width = prompt + max(lengths)
        ids = torch.randint(0, words, (len(lengths), width), generator=generator)
        real = torch.tensor([[i < prompt + n for i in range(width)] for n in lengths])
        asked = torch.arange(width) < prompt
        batch[f"{side}_input_ids"] = ids
        batch[f"{side}_attention_mask"] = real.long()
        batch[f"{side}_labels"] = ids.masked_fill(~real | asked, -100)
    width = prompt + max(chosen + rejected)
    shape = (2 * len(chosen), width, words)
    logits = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    trainer = SimpleNamespace(
        accelerator=gathered(), aux_loss_enabled=False, is_encoder_decoder=False, padding_value=0, pad_token_id=0,
        get_batch_logps=trainer_class.get_batch_logps, concatenated_inputs=trainer_class.concatenated_inputs,
        **settings,
    )  # fmt: skip
    for name in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(trainer_class, name):
            method = getattr(trainer_class, name)
            setattr(trainer, name, lambda *args, method=method: method(trainer, *args))
    with doubles_stay():
        loss, metrics = trainer_class.get_batch_loss_metrics(
            trainer, Recorded(SimpleNamespace(logits=logits)), batch
        )
    loss.backward()
    joined = trainer_class.concatenated_inputs(batch, padding_value=0, device=torch.device("cpu"))
    labels = joined["concatenated_labels"]
    return {
        "settings": settings, "prompt": prompt, "logits": plain(logits), "labels": plain(labels),
        "loss": plain(loss), "grad_logits": plain(logits.grad), "metrics": metrics,
    }  # fmt: skip


@contextmanager
def doubles_stay():
    """ORPO's `.float()` keeps float64, so that its formula is recorded to all digits."""
    narrow = torch.Tensor.float
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else narrow(self)
    try:
        yield
    finally:
        torch.Tensor.float = narrow


def main() -> None:
    torch.set_num_threads(1)
    everything = list(range(len(CHOSEN)))
    record = {
        "peer": f"trl {trl.__version__}", "torch": torch.__version__,
        "sigmoid": [dpo("sigmoid", everything, beta, 0.0) for beta in (0.1, BETA)],
        "cdpo": [dpo("aot", [i], BETA, SMOOTHING) for i in everything],
        "robust": [dpo("robust", everything, BETA, SMOOTHING)],
        "ipo": [dpo("ipo", everything, BETA, 0.0)],
        "kto": [
            kto([True, False, True, True, False, False, True], 0.4, (1.0, 1.0)),
            kto([True, False, False, True, False, False, True], 0.3, (1.3, 0.7)),
            kto([True, False, True, True, False, False, True], -0.4, (1.0, 1.5)),
            kto([True] * 7, 0.4, (1.2, 1.0)),
        ],
        "simpo": [
            from_logits(
                CPOTrainer,
                {"loss_type": "simpo", "beta": 1.7, "simpo_gamma": 0.6, "label_smoothing": e, "cpo_alpha": 0.0,
                 "alpha": 0.0},
                2, [3, 1, 4], [2, 5, 1], 7,
            )
            for e in (0.0, SMOOTHING)
        ],
        "orpo": [
            # One prompt token and one pair: trl's likelihood is of the completion alone, as in the paper.
            *(from_logits(ORPOTrainer, {"beta": 0.4}, 1, [n], [m], 8 + n) for n, m in ((4, 2), (1, 3))),
            from_logits(ORPOTrainer, {"beta": 0.4}, 3, [4, 2], [3, 5], 11),
        ],
    }  # fmt: skip
    baselines = [case["metrics"]["kl"] for case in record["kto"]]
    assert min(baselines) == 0 < max(baselines), f"the clamp is not in both states: {baselines}"
    OUT.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, baselines {baselines}")


if __name__ == "__main__":
    main()
