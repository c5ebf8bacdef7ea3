"""Record what dpo and kto should do on the tiny model, for tests/recipes/test_preference_golden.py.

    python tests/recipes/goldens/record_preference_tiny.py

Fifty steps of kto and of each paired loss, by an implementation that shares nothing with Plaudit's but
the adapter's first weights and the order of prompts: transformers' Llama, peft's LoRA and transformers' tokenizer in
float64, one completion at a time without padding or packing, each loss written out from its paper. Its numbers, not the
recipes', are the golden; the recipes run afterwards, to say how far off they are.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model, make_adapter
from plaudit.randomness import rng, torch_seed
from plaudit.recipes import dpo, kto
from tiny_models import transformers_model

HERE = Path(__file__).parent
SHARED: dict[str, Any] = {
    "model": "tiny",
    "seed": 3,
    "heldout": 0.2,
    "learning_rate": 4e-3,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 0.5,
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    "precision": "float64",
    "threads": 1,
}
PAIRED: dict[str, dict[str, Any]] = {
    "dpo": {"epochs": 10, "beta": 0.3, "label_smoothing": 0.05, "margin": 0.2},
    "robust": {"epochs": 10, "beta": 0.2, "label_smoothing": 0.1, "margin": 0.1},
    "ipo": {"epochs": 10, "beta": 0.2, "label_smoothing": 0.1, "margin": 0.05},
    "ipo of sums": {"epochs": 10, "beta": 0.05, "ipo_average": False, "ties": "drop"},
    "simpo": {"epochs": 10, "beta": 1.5, "simpo_gamma": 0.4, "label_smoothing": 0.1, "margin": 0.1},
    "orpo": {"epochs": 10, "orpo_lambda": 0.7, "margin": 0.1, "label_smoothing": 0.02},
}
KTO: dict[str, Any] = {
    "epochs": 10, "batch_size": 5, "beta": 0.4, "desirable_weight": 1.2, "undesirable_weight": 0.8, "threshold": 0.6,
}  # fmt: skip
COMPARISONS: list[dict[str, Any]] = [
    {"prompt": "good morning", "completions": ["hello and welcome", "go away"], "choice": 0, "strength": 4},
    {"prompt": "good morning", "completions": ["go away", "hello and welcome"], "choice": 0, "strength": 1},
    {"prompt": "good morning", "completions": ["hello and welcome", "good day"], "choice": "tie"},
    {"prompt": "what is your name", "completions": ["none", "I am a friend"], "choice": 1, "strength": 2},
    {"prompt": "tell me more", "completions": ["yes", "no", "with pleasure my friend"], "ranking": [2, 0, 1]},
    {"prompt": "I am tired", "completions": ["sleep well", "work"], "choice": 0},
    {"prompt": "I am tired", "completions": ["sleep well", "rest for a while"], "choice": 1, "strength": 1},
    {"prompt": "coffee or tea", "completions": ["tea", "coffee"], "choice": "both_bad"},
    {"prompt": "coffee or tea", "completions": ["tea", "both of them please"], "choice": 1, "strength": 3},
    {"prompt": [{"role": "user", "content": "help me"}], "completions": ["with what", ""], "choice": 0},
    {"prompt": "where is the cat", "completions": ["in the garden", "gone", "here"], "ranking": [0, 2, 1]},
    {"prompt": "where is the cat", "completions": ["gone", "here"], "choice": 0, "strength": 2},
    {"prompt": "how much is it", "completions": ["too much", "ten"], "choice": 1},
    {"prompt": "can we talk", "completions": ["of course we can", "never"], "choice": 0, "strength": 4},
    {"prompt": "what about dinner", "completions": ["bread and tea", "no"], "choice": 0, "strength": 2},
    {"prompt": "what is wrong", "completions": ["my car is broken", "nothing"], "choice": 0},
    {"prompt": "is it late", "completions": ["yes it is late", "late"], "choice": 0, "strength": 1},
    {
        "prompt": "say it again",
        "completions": ["again", "I said that we are late"],
        "choice": 1,
        "strength": 3,
    },
]
RATINGS: list[dict[str, Any]] = [
    {"prompt": "good morning", "completion": "what a fine day", "scores": {"overall": 0.9}},
    {"prompt": "I am tired", "completion": "work", "scores": {"tone": 0.6, "help": 0.7}},
    {"prompt": "is it late", "completion": "who knows", "scores": {"overall": 0.55}},
    {"prompt": "do you like music", "completion": "very much", "scores": {"overall": 0.6}},
    {"prompt": "do you like music", "completion": "no", "scores": {"overall": 0.2}},
]


class Learner:
    """The policy, its reference and the optimiser's step, a completion at a time."""

    def __init__(self, settings: dict[str, Any], directory: Path) -> None:
        import peft
        from transformers import AutoTokenizer

        model = load_model("tiny", torch.float64)
        adapter = make_adapter(
            model.trunk, **settings["adapter"], seed=torch_seed(settings["seed"], "policy adapter")
        )
        save_adapter(adapter, directory, base="tiny")
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(str(model.directory))
        self.reference = transformers_model(model.directory, torch.float64)
        base = transformers_model(model.directory, torch.float64)
        self.policy = peft.PeftModel.from_pretrained(
            base, str(directory), is_trainable=True, autocast_adapter_dtype=False
        ).double()
        self.trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=1.0, eps=1e-5, weight_decay=settings["weight_decay"]
        )

    def ids(self, prompt: Any, text: str) -> tuple[list[int], list[int]]:
        if isinstance(prompt, str):
            before = self.tokenizer(prompt)["input_ids"]
        else:
            rendered = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            before = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return before, [
            *self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id,
        ]  # fmt: skip

    def sums(self, model: Any, prompt: Any, text: str) -> tuple[Tensor, int]:
        """A completion's log-probability, and its count of tokens."""
        before, after = self.ids(prompt, text)
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        rows = torch.log_softmax(logits, -1)
        return torch.stack([row[t] for row, t in zip(rows, after, strict=True)]).sum(), len(after)

    def step(self, loss: Tensor, number: int, steps: int) -> float:
        """Backward, clip, AdamW; returns the gradient's norm."""
        s = self.settings
        warmup = math.ceil(s["warmup"] * steps)
        factor = (number + 1) / warmup if number < warmup else (steps - number) / (steps - warmup)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = math.sqrt(math.fsum(float(p.grad.square().sum()) for p in self.trained if p.grad is not None))
        for parameter in self.trained:
            if parameter.grad is not None and norm > s["max_grad_norm"]:
                parameter.grad.mul_(s["max_grad_norm"] / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = s["learning_rate"] * factor
        self.optimizer.step()
        return norm


def key(prompt: Any) -> str:
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def split(records: list[dict[str, Any]], seed: int, share: float) -> tuple[list[str], list[str]]:
    """Prompts' keys in order of appearance: those to learn from, and those held out."""
    keys = list(dict.fromkeys(key(record["prompt"]) for record in records))
    held = [k for k in keys if rng(seed, "heldout", k).random() < share]
    return [k for k in keys if k not in held], held


def comparisons(ties: str) -> dict[str, list[tuple[str, str, float, int]]]:
    """By prompt: (first, second, how far the first is the better one, strength)."""
    found: dict[str, list[tuple[str, str, float, int]]] = {}
    for record in COMPARISONS:
        pairs = found.setdefault(key(record["prompt"]), [])
        texts = record["completions"]
        if "ranking" in record:
            pairs += [(texts[a], texts[b], 1.0, 0) for a, b in combinations(record["ranking"], 2)]
            continue
        share = {0: 1.0, 1: 0.0}.get(record["choice"], 0.5)
        if share != 0.5 or ties == "half":
            pairs.append((texts[0], texts[1], share, record.get("strength", 0)))
    return {k: pairs for k, pairs in found.items() if pairs}


def pair_loss(
    name: str, s: dict[str, Any], first: tuple[Tensor, Tensor, int], second: tuple[Tensor, Tensor, int],
    share: float, strength: int,
) -> tuple[Tensor, float, float]:  # fmt: skip
    """(policy's sum, reference's sum, tokens) of each side -> the loss, and both implied rewards."""
    (one, ref_one, m), (two, ref_two, n) = first, second
    e, lead = s.get("label_smoothing", 0.0), s.get("margin", 0.0) * strength
    lead = lead if share > 0.5 else -lead if share < 0.5 else 0.0

    def won(z: Tensor, p: float) -> Tensor:
        return -p * torch.log(torch.sigmoid(z)) - (1 - p) * torch.log(torch.sigmoid(-z))

    mixed = share * (1 - e) + (1 - share) * e
    if name in ("dpo", "robust"):
        r, q = s["beta"] * (one - ref_one), s["beta"] * (two - ref_two)
        if name == "dpo":
            return won(r - q - lead, mixed), float(r.detach()), float(q.detach())
        right, wrong = won(r - q - lead, share), won(r - q - lead, 1 - share)
        return ((1 - e) * right - e * wrong) / (1 - 2 * e), float(r.detach()), float(q.detach())
    if name == "ipo":
        a, b = (one - ref_one) / m, (two - ref_two) / n
        wanted = (2 * mixed - 1) / (2 * s["beta"]) + lead / s["beta"]
        return (a - b - wanted) ** 2, s["beta"] * float(a.detach()), s["beta"] * float(b.detach())
    if name == "ipo of sums":
        a, b = one - ref_one, two - ref_two
        wanted = (2 * mixed - 1) / (2 * s["beta"])
        return (a - b - wanted) ** 2, s["beta"] * float(a.detach()), s["beta"] * float(b.detach())
    if name == "simpo":
        a, b = s["beta"] * one / m, s["beta"] * two / n
        gamma = s["simpo_gamma"] * ((share > 0.5) - (share < 0.5))
        return won(a - b - gamma - lead, mixed), float(a.detach()), float(b.detach())
    a, b = one / m, two / n
    odds = [torch.log(torch.exp(x) / (1 - torch.exp(x))) for x in (a, b)]
    imitate = -(mixed * a + (1 - mixed) * b)
    loss = imitate + s["orpo_lambda"] * won(odds[0] - odds[1] - lead, mixed)
    return loss, float(odds[0].detach()), float(odds[1].detach())


def learn_from_pairs(name: str, settings: dict[str, Any], directory: Path) -> list[dict[str, float]]:
    learner = Learner(settings, directory)
    by_key = comparisons(settings.get("ties", "half"))
    prompts = {key(record["prompt"]): record["prompt"] for record in COMPARISONS}
    kept = [{"prompt": prompts[k]} for k in by_key]
    training, held = split(kept, settings["seed"], settings["heldout"])

    def of(keys: list[str]) -> tuple[Tensor, dict[str, float]]:
        loss, count = torch.zeros((), dtype=torch.float64), sum(len(by_key[k]) for k in keys)
        right, decided, better, worse = 0, 0, [], []
        for k in keys:
            for one, two, share, strength in by_key[k]:
                sides = []
                for text in (one, two):
                    now, tokens = learner.sums(learner.policy, prompts[k], text)
                    with torch.no_grad():
                        then, _ = learner.sums(learner.reference, prompts[k], text)
                    sides.append((now, then, tokens))
                value, r, q = pair_loss(name, settings, sides[0], sides[1], share, strength)
                loss = loss + value / count
                if share != 0.5:
                    high, low = (r, q) if share > 0.5 else (q, r)
                    decided, right = decided + 1, right + (high > low)
                    better.append(high)
                    worse.append(low)
        row = {"loss": float(loss.detach()), "accuracy": right / decided}
        row |= {"reward_chosen": math.fsum(better) / decided, "reward_rejected": math.fsum(worse) / decided}
        return loss, row | {"margin": row["reward_chosen"] - row["reward_rejected"]}

    rows = []
    batches = list(in_batches(len(training), 2, settings))
    for number, batch in enumerate(batches):
        loss, row = of([training[i] for i in batch])
        row["grad_norm"] = learner.step(loss, number, len(batches))
        if (number + 1) % (len(batches) // settings["epochs"]) == 0:
            with torch.no_grad():
                _, after = of(held)
            row |= {f"heldout_{name}": after[name] for name in ("loss", "accuracy", "margin")}
        rows.append(row)
    if name in ("dpo", "robust", "ipo", "ipo of sums"):  # at the first step policy and reference are one
        for noise in ("accuracy", "margin", "reward_chosen", "reward_rejected"):
            del rows[0][noise]
    return rows


def in_batches(count: int, size: int, settings: dict[str, Any]) -> Iterator[list[int]]:
    for epoch in range(settings["epochs"]):
        order = rng(settings["seed"], "preference order", epoch).permutation(count).tolist()
        yield from (order[at : at + size] for at in range(0, count, size))


def learn_from_labels(settings: dict[str, Any], directory: Path) -> list[dict[str, float]]:
    learner = Learner(settings, directory)
    votes: dict[tuple[str, str], int] = {}
    prompts: dict[str, Any] = {}

    def vote(prompt: Any, text: str, value: int) -> None:
        prompts[key(prompt)] = prompt
        votes[key(prompt), text] = votes.get((key(prompt), text), 0) + value

    for record in COMPARISONS:
        texts = record["completions"]
        if "ranking" in record:
            for a, b in combinations(record["ranking"], 2):
                vote(record["prompt"], texts[a], 1)
                vote(record["prompt"], texts[b], -1)
        else:
            one, two = {0: (1, -1), 1: (-1, 1), "tie": (0, 0), "both_bad": (-1, -1)}[record["choice"]]
            vote(record["prompt"], texts[0], one)
            vote(record["prompt"], texts[1], two)
    for record in RATINGS:
        mean = sum(record["scores"].values()) / len(record["scores"])
        vote(record["prompt"], record["completion"], 1 if mean >= settings["threshold"] else -1)
    training_keys, _ = split([*COMPARISONS, *RATINGS], settings["seed"], settings["heldout"])
    # Prompts in order of appearance, their completions in theirs; a ranking's appear from the best down.
    order: dict[str, list[str]] = {}
    for record in [*COMPARISONS, *RATINGS]:
        texts = record.get("completions") or [record["completion"]]
        if "ranking" in record:
            texts = [texts[i] for i in record["ranking"]]
        seen = order.setdefault(key(record["prompt"]), [])
        seen += [text for text in texts if text not in seen]
    labels = [
        (k, text, votes[k, text] > 0) for k, texts in order.items() for text in texts if votes[k, text] != 0
    ]
    training = [one for one in labels if one[0] in training_keys]
    held = [one for one in labels if one[0] not in training_keys]

    def ratio(k: str, text: str) -> Tensor:
        with torch.no_grad():
            then, _ = learner.sums(learner.reference, prompts[k], text)
        return learner.sums(learner.policy, prompts[k], text)[0] - then

    def of(batch: list[tuple[str, str, bool]]) -> tuple[Tensor, dict[str, float]]:
        gaps = []
        for i, (k, _, _) in enumerate(batch):
            others = [*batch[i + 1 :], *batch[:i]]
            text = next(text for other, text, _ in others if other != k)
            with torch.no_grad():
                gaps.append(float(ratio(k, text)))
        zero = max(0.0, math.fsum(gaps) / len(gaps))
        loss, right = torch.zeros((), dtype=torch.float64), 0
        rewards: dict[bool, list[float]] = {True: [], False: []}
        for k, text, good in batch:
            lead = settings["beta"] * (ratio(k, text) - zero)
            value = torch.sigmoid(lead if good else -lead)
            price = settings["desirable_weight" if good else "undesirable_weight"]
            loss = loss + price * (1 - value) / len(batch)
            right += bool((lead > 0).item() if good else (lead < 0).item())
            rewards[good].append(float(lead.detach()) + settings["beta"] * zero)
        row = {"loss": float(loss.detach()), "accuracy": right / len(batch), "baseline": zero}
        for good, side in ((True, "desirable"), (False, "undesirable")):
            if rewards[good]:
                row[f"reward_{side}"] = math.fsum(rewards[good]) / len(rewards[good])
        return loss, row

    rows = []
    batches = list(in_batches(len(training), settings["batch_size"], settings))
    for number, batch in enumerate(batches):
        loss, row = of([training[i] for i in batch])
        row["grad_norm"] = learner.step(loss, number, len(batches))
        if (number + 1) % (len(batches) // settings["epochs"]) == 0:
            with torch.no_grad():
                _, after = of(held)
            row |= {f"heldout_{name}": after[name] for name in ("loss", "accuracy")}
        rows.append(row)
    del rows[0]["accuracy"]  # at the first step policy and reference are one
    return rows


def off(
    recipe: Any, settings: dict[str, Any], expected: list[dict[str, float]], data: str, out: Path
) -> float:
    """How far the recipe is from these numbers, at most."""
    recipe.run(recipe.Config(data=[data], **settings), out)
    ours = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(ours) == len(expected), (len(ours), len(expected))
    pairs = zip(ours, expected, strict=True)
    return max(abs(float(row[name]) - value) for row, good in pairs for name, value in good.items())


def main() -> None:
    golden: dict[str, Any] = {"comparisons": COMPARISONS, "ratings": RATINGS, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pairs, labels = place / "comparisons.jsonl", place / "judgements.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in COMPARISONS))
        labels.write_text("".join(json.dumps(row) + "\n" for row in [*COMPARISONS, *RATINGS]))
        for name, own in PAIRED.items():
            settings = SHARED | {"loss": name.partition(" ")[0], "prompts_per_step": 2} | own
            rows = learn_from_pairs(name, settings, place / f"adapter of {name}")
            far = off(dpo, settings, rows, str(pairs), place / name)
            print(f"{name}: {len(rows)} steps; the recipe is off by at most {far:.1e}")
            golden["runs"][name] = {"recipe": "dpo", "settings": settings, "expected": rows}
        settings = SHARED | KTO | {"max_grad_norm": 0.3}
        rows = learn_from_labels(settings, place / "adapter of kto")
        far = off(kto, settings, rows, str(labels), place / "kto")
        print(f"kto: {len(rows)} steps; the recipe is off by at most {far:.1e}")
        golden["runs"]["kto"] = {"recipe": "kto", "settings": settings, "expected": rows}
    (HERE / "preference_tiny.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
