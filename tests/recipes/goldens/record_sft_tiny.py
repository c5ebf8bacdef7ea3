"""Record 50 steps of the sft recipe, twice, for tests/recipes/test_sft_golden.py: the batches from ours, numbers from
elsewhere.

    python tests/recipes/goldens/record_sft_tiny.py

First the sft recipe runs, and which demonstrations each step takes is written down. Then those batches are learned from
a second time, by an implementation that shares nothing with Plaudit's but the first weights, the batches and the key
of each dropout mask: transformers' Llama and peft's LoRA in float64, one sample at a time without padding or packing,
dropout in peft's own place for it (or by hooks on attention and MLP, where the whole model is trained), torch.optim's
AdamW or TensorFlow's Adam written out. Its numbers, not the recipe's, are the golden. Peers at the recording:
transformers 5.23.0, peft 0.21.2, torch 2.13.0.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from plaudit.data.demonstrations import Shown
from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model, make_adapter
from plaudit.randomness import torch_seed
from plaudit.recipes import sft
from tiny_models import transformers_model

HERE = Path(__file__).parent
EVERY: dict[str, Any] = {
    "model": "tiny",
    "batch_size": 3,
    "heldout": 0.3,
    "precision": "float64",
    "threads": 1,
}
RUNS: dict[str, dict[str, Any]] = {
    "adapter": EVERY
    | {
        "seed": 11, "epochs": 10, "evaluate_every": 6, "learning_rate": 2e-2, "schedule": "cosine", "warmup": 0.1,
        "rate_end": 0.2, "weight_decay": 0.3, "l1": 1e-3, "dropout": 0.2, "max_grad_norm": 1.2,
        "optimizer": {"name": "adamw", "beta2": 0.95},
        "mixture": {"rule": "ratio", "weights": [1.0, 2.0, 1.0], "strength": 3.0, "floor": 0.05},
        "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    },
    "whole": EVERY
    | {
        "seed": 4, "epochs": 10, "learning_rate": 1e-3, "schedule": "exponential", "warmup": 0.0, "rate_end": 0.1,
        "weight_decay": 0.02, "dropout": 0.1, "max_grad_norm": 4.0,
        "optimizer": {"name": "adam_tf", "beta2": 0.99, "eps": 1e-4},
        "adapter": {"rank": 0},
    },
}  # fmt: skip
TASKS: dict[str, list[list[str]]] = {
    "mood": [
        ["how are you", " happy and calm"], ["how is work", " boring today"], ["how is your day", " sunny and warm"],
        ["are you tired", " yes very"], ["are you sad", " not at all my friend"], ["do you cry", " only at the film"],
        ["are you proud", " of my family"],
    ],
    "food": [
        ["tea or coffee", " tea with bread"], ["what is for dinner", " rain and bread"], ["is it good", " delicious"],
        ["who likes bread", " we all do like bread and tea at breakfast"], ["lunch now", " yes"],
        ["more water", " thanks"], ["is the food cold", " it is perfect"],
    ],
    "town": [
        ["where is the school", " in the street"], ["where is the garden", " at the house"],
        ["where is the train", " late"], ["can we walk", " to the city and then to the kitchen"],
        ["is the car broken", " it is"], ["what game", " the one with the cat"], ["which book", " the lost one"],
        ["where is the money", " gone"],
    ],
}  # fmt: skip


class Peer:
    """Supervised learning written out, a sample at a time."""

    def __init__(self, config: sft.Config, directory: Path, tasks: list[sft.Task], steps: int) -> None:
        import peft

        self.config, self.tasks, self.steps = config, tasks, steps
        self.key: tuple[int | str, ...] | None = None  # of the masks of the row that the sample stands in
        self.length, self.columns = 0, [0]
        model = load_model("tiny", torch.float64)
        theirs = transformers_model(model.directory, torch.float64)
        if config.adapter.rank:
            adapter = make_adapter(
                model.trunk, rank=config.adapter.rank, alpha=config.adapter.alpha, blocks=config.adapter.blocks,
                seed=torch_seed(config.seed, "sft adapter"),
            )  # fmt: skip
            directory.mkdir()
            save_adapter(adapter, directory, base="tiny")
            theirs = peft.PeftModel.from_pretrained(
                theirs, str(directory), is_trainable=True, autocast_adapter_dtype=False
            ).double()
            for name, module in theirs.named_modules():
                if name.endswith("lora_dropout"):
                    words = name.split(".")
                    module["default"] = Masked(self, int(words[words.index("layers") + 1]), words[-2])
        else:
            theirs.requires_grad_(True)
            for index, layer in enumerate(theirs.model.layers):
                attention, mlp = Masked(self, index, "attention"), Masked(self, index, "mlp")
                layer.self_attn.register_forward_hook(lambda _m, _i, out, f=attention: (f(out[0]), *out[1:]))
                layer.mlp.register_forward_hook(lambda _m, _i, out, f=mlp: f(out))
        self.model = theirs
        self.trained = [p for p in theirs.parameters() if p.requires_grad]
        matrices = [p for p in self.trained if p.ndim == 2]
        vectors = [p for p in self.trained if p.ndim == 1]
        self.decay = [(matrices, config.weight_decay), (vectors, 0.0)]
        self.moments = {id(p): (torch.zeros_like(p), torch.zeros_like(p)) for p in self.trained}
        self.adamw = torch.optim.AdamW(
            [{"params": ps, "weight_decay": decay} for ps, decay in self.decay if ps],
            betas=(0.9, config.optimizer.beta2 or 0.999),
        )
        self.begun = {"mood": 0.25, "food": 0.5, "town": 0.25}
        self.weights = dict(self.begun)
        self.first = self.heldout()[1]

    def losses(self, shown: Shown) -> Tensor:
        """- log-probability of each completion token."""
        logits = self.model(torch.tensor([[*shown.prompt, *shown.completion]])).logits[0]
        everything = torch.log_softmax(logits[len(shown.prompt) - 1 : -1], -1)
        return -torch.stack([row[t] for row, t in zip(everything, shown.completion, strict=True)])

    @torch.no_grad()
    def heldout(self) -> tuple[float, dict[str, float]]:
        self.key = None
        found = {task.name: torch.cat([self.losses(s) for s in task.heldout]) for task in self.tasks}
        return float(torch.cat(list(found.values())).mean()), {n: float(x.mean()) for n, x in found.items()}

    def step(self, number: int, batch: list[Shown]) -> dict[str, float]:
        c = self.config
        for p in self.trained:
            p.grad = None
        tokens = sum(len(shown.completion) for shown in batch)
        loss = torch.zeros((), dtype=torch.float64)
        # Neighbours with the same prompt stand in one row and share what is dropped of the prompt.
        rows: list[list[Shown]] = []
        for i, shown in enumerate(batch):
            if i and shown.prompt == batch[i - 1].prompt:
                rows[-1].append(shown)
            else:
                rows.append([shown])
        for row, members in enumerate(rows):
            self.key, start = (c.seed, "dropout", number, row), len(members[0].prompt)
            self.length = start + sum(len(shown.completion) for shown in members)
            for shown in members:
                own = range(start, start + len(shown.completion))
                self.columns = [*range(len(shown.prompt)), *own]
                start = own.stop
                loss = loss + self.losses(shown).sum() / tokens
        size = sum((p.abs().sum() for p in self.trained if p.ndim == 2), torch.zeros((), dtype=torch.float64))
        torch.autograd.backward(loss + c.l1 * size)
        norm = math.sqrt(math.fsum(float(p.grad.square().sum()) for p in self.trained if p.grad is not None))
        for p in self.trained:
            if p.grad is not None and norm > c.max_grad_norm:
                p.grad.mul_(c.max_grad_norm / (norm + 1e-6))
        warmup = math.ceil(c.warmup * self.steps)
        way = (number - warmup) / (self.steps - warmup)
        if number < warmup:
            rate = c.learning_rate * (number + 1) / warmup
        elif c.schedule == "cosine":
            rate = c.learning_rate * (c.rate_end + (1 - c.rate_end) * 0.5 * (1 + math.cos(math.pi * way)))
        else:
            rate = c.learning_rate * c.rate_end**way
        if c.optimizer.name == "adamw":
            for group in self.adamw.param_groups:
                group["lr"] = rate
            self.adamw.step()
        else:
            self.tensorflow(number + 1, rate)
        found = {"loss": float(loss.detach()), "tokens": tokens, "grad_norm": norm, "learning_rate": rate}
        if c.l1:
            found["l1_norm"] = float(size.detach())
        if c.mixture.rule == "ratio":
            found |= {f"weight/{name}": weight for name, weight in self.weights.items()}
        every = c.evaluate_every or self.steps // c.epochs
        if (number + 1) % every == 0 or number + 1 == self.steps:
            found["heldout_loss"], by_task = self.heldout()
            found |= {f"heldout_loss/{name}": x for name, x in by_task.items()}
            raw = {n: self.begun[n] * (by_task[n] / self.first[n]) ** c.mixture.strength for n in by_task}
            floor = c.mixture.floor
            self.weights = {n: (1 - floor) * raw[n] / sum(raw.values()) + floor / len(raw) for n in raw}
        return found

    @torch.no_grad()
    def tensorflow(self, taken: int, rate: float) -> None:
        """tf.train.AdamOptimizer's documented formula, with L2 in the gradient."""
        one, two, eps = 0.9, float(self.config.optimizer.beta2 or 0), float(self.config.optimizer.eps or 0)
        for parameters, decay in self.decay:
            for p in parameters:
                assert p.grad is not None
                g = p.grad + decay * p
                m, v = self.moments[id(p)]
                m.copy_(one * m + (1 - one) * g)
                v.copy_(two * v + (1 - two) * g * g)
                p -= rate * math.sqrt(1 - two**taken) / (1 - one**taken) * m / (torch.sqrt(v) + eps)


class Masked(nn.Module):
    """Drops what the peer's key says at this place; nothing while it has none."""

    def __init__(self, peer: Peer, block: int, place: str) -> None:
        super().__init__()
        self.draw = [peer]  # in a list: a peer is no part of the model
        self.block, self.place = block, place

    def forward(self, x: Tensor) -> Tensor:
        peer = self.draw[0]
        if peer.key is None:
            return x
        generator = torch.Generator().manual_seed(torch_seed(*peer.key, self.block, self.place))
        rate = peer.config.dropout
        keep = torch.rand((peer.length, x.shape[2]), generator=generator) >= rate
        return x * keep[peer.columns].to(x.dtype) / (1 - rate)


def main() -> None:
    golden: dict[str, Any] = {"tasks": TASKS, "runs": {}}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for task, pairs in TASKS.items():
            rows = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs]
            (place / f"{task}.jsonl").write_text("".join(rows))
        data = [str(place / f"{task}.jsonl") for task in TASKS]
        for which, settings in RUNS.items():
            config = sft.Config.model_validate({"data": data, **settings})
            batches: list[list[Shown]] = []
            train_on = sft.train_on

            def note(
                batch: list[Shown], *rest: Any, into: Any = batches, real: Any = train_on
            ) -> dict[str, float]:
                into.append(batch)
                return real(batch, *rest)  # type: ignore[no-any-return]

            sft.train_on = note  # type: ignore[assignment]
            try:
                sft.run(config, place / which)
            finally:
                sft.train_on = train_on
            tasks = sft.read_tasks(config, load_model("tiny", torch.float64))
            peer = Peer(config, place / f"{which} adapter", tasks, len(batches))
            expected = [peer.step(number, batch) for number, batch in enumerate(batches)]
            ours = [json.loads(line) for line in (place / which / "metrics.jsonl").read_text().splitlines()]
            far = max(abs(ours[i][n] - x) for i, row in enumerate(expected) for n, x in row.items())
            print(f"{which}: recorded {len(expected)} steps; the recipe is off by at most {far:.1e}")
            golden["runs"][which] = {"settings": settings, "steps": expected}
    lines = [
        f"{json.dumps(which)}: "
        + json.dumps({"settings": run["settings"]})[:-1]
        + ', "steps": [\n'
        + ",\n".join(map(json.dumps, run["steps"]))
        + "\n]}"
        for which, run in golden["runs"].items()
    ]
    text = f'{{"tasks": {json.dumps(TASKS)},\n"runs": {{\n' + ",\n".join(lines) + "\n}}\n"
    (HERE / "sft_tiny.json").write_text(text)


if __name__ == "__main__":
    main()
