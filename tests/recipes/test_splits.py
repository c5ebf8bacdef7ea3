"""How a batch is laid out changes no gradient: whose rows they are, their order, and how far they are padded.

DESIGN.md, section 3.3, held by every training recipe. The recipe runs as it is, to the optimiser step that it is asked
about, and there its gradients are taken. A rank of a data-parallel run is the same run that computes gradients of its
own rows alone, with the whole batch's totals; what the ranks find sums to the whole batch's gradient.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from plaudit.data.collate import PADDING, Packed, micro_batches, pack
from plaudit.models import label_head
from plaudit.rollout import collect
from plaudit.training import learner, online
from plaudit.training.online import Drawn
from plaudit.training.optim import take_step
from runs import ONLINE, judged, shipped, write_prompts

LAST = 3
"""The optimiser step whose gradients are taken, from 0: in a recipe with two epochs a batch the second batch's second,
whose ratios are not 1."""
RANKS = 2
RECORDS: list[dict[str, Any]] = [
    {"prompt": "how are you today", "completions": [" great and happy", " bad"], "choice": 0, "strength": 3},
    {"prompt": "how are you today", "completions": [" bad", " tired and sad"], "choice": "tie"},
    {"prompt": "what do you like", "completions": [" nothing", " good music and a book"], "choice": 1},
    {"prompt": "where is the cat", "completions": [" garden", " in the garden", " no"], "ranking": [1, 0, 2]},
    {"prompt": "tell me more", "completions": [" of course I will", " no"], "choice": 0, "strength": 1},
    {"prompt": "can we talk", "completions": [" no", " yes we can"], "choice": 1, "strength": 4},
]  # fmt: skip
RATINGS: list[dict[str, Any]] = [
    {"prompt": "what about dinner", "completion": " bread and tea", "scores": {"overall": 0.25}},
    {"prompt": "what is wrong", "completion": " my car is broken today", "scores": {"overall": 0.75}},
    {"prompt": "what is wrong", "completion": " nothing", "scores": {"overall": 0.5}},
]
OFFLINE: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 6},
    "sft, dropout": {"batch_size": 6, "dropout": 0.2},
    "reward_model": {"prompts_per_step": 6},
    "reward_model, aware": {"prompts_per_step": 6, "raters": "aware", "rating": "ordinal", "margin": 0.1},
    "dpo": {"prompts_per_step": 5, "margin": 0.1},
    "dpo, ipo": {"prompts_per_step": 5, "loss": "ipo"},
    "dpo, simpo": {"prompts_per_step": 5, "loss": "simpo"},
    "dpo, orpo": {"prompts_per_step": 5, "loss": "orpo"},
    "kto": {"batch_size": 7},
    "ilql": {"batch_size": 7, "awac_beta": 0.5, "polyak": 0.2},
    "bandit": {"batch_size": 8, "exit": 1.0},
}
ALL = (*OFFLINE, *ONLINE, "rloo, clipped", "reinforce_feedback")


class Taken(BaseException):
    """The gradients are known; what the recipe would do with them is not asked."""


@dataclass
class Clock:
    """Counts the recipe's optimiser steps and ends it before the last. beside: what another optimiser trains."""

    taken: int = 0
    first: torch.optim.Optimizer | None = None
    beside: list[nn.Parameter] = field(default_factory=list)
    found: Tensor = field(default_factory=lambda: torch.zeros(0))

    def take_step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], **rest: Any
    ) -> float:
        self.first = self.first or optimizer
        if optimizer is self.first:
            if self.taken == LAST:
                asked = [*parameters, *self.beside]
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in asked]
                self.found = torch.cat([grad.flatten().double() for grad in grads])
                raise Taken
            self.taken += 1
        return take_step(optimizer, parameters, **rest)


Change = Callable[[pytest.MonkeyPatch, Any, Clock], None]


def gradients(name: str, place: Path, change: Change | None = None) -> Tensor:
    """Of everything that the recipe trains, in one row."""
    recipe, config = settings(name, place)
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner if name not in OFFLINE else recipe, "take_step", clock.take_step)
        if hasattr(recipe, "begin"):
            begin = recipe.begin

            def remembered(*given: Any) -> Any:
                reading, effects = begin(*given)
                clock.beside = list(effects.parameters())
                return reading, effects

            patch.setattr(recipe, "begin", remembered)
        if change is not None:
            change(patch, recipe, clock)
        with pytest.raises(Taken):
            recipe.run(config, place / f"run-{len(list(place.iterdir()))}")
    return clock.found


def settings(name: str, place: Path) -> tuple[Any, Any]:
    config, _, more = name.partition(", ")
    tree: dict[str, Any] = {
        "model": "tiny", "heldout": 0.0, "epochs": 4, "learning_rate": 1e-2, "warmup": 0.0, "adapter": {"rank": 4},
        "precision": "float64", "threads": 1, "checkpoint_every": 100,
    }  # fmt: skip
    if name in OFFLINE:
        return shipped(config, **tree | {"data": [written(config, place)]} | OFFLINE[name])
    tree |= {
        "prompts": write_prompts(place), "reward": "rules:fourths", "steps": 5, "prompts_per_step": 4, "epochs": 2,
        "samples_per_prompt": 3, "max_new_tokens": 6, "missing_eos_penalty": None, "minibatches": 1,
        "dynamic_sampling": 0, "overlong_buffer": 2, "entropy_coef": 0.01, "kl": {"coef": 0.1},
    }  # fmt: skip
    if more == "clipped":
        tree |= {"loss": "clipped"}
    if name == "reinforce_feedback":
        tree |= {"prompts": None, "reward": None, **judged(place)}
    return shipped(config, **tree)


def written(config: str, place: Path) -> str:
    """What the recipe reads: the same few words, said in its own way."""
    best = [
        {"prompt": r["prompt"], "completion": r["completions"][0 if r.get("choice") == 0 else 1]}
        for r in RECORDS
    ]
    logged = [
        {
            "prompt": text,
            "completion": ("yes", "no")[i % 3 == 0],
            "propensity": 0.5,
            "scores": {"overall": i / 8},
        }
        for i, text in enumerate(
            ("I love it", "a sad day", "rain", "we had so much fun", "tea", "no more", "ok", "sun")
        )
    ]
    raters = ("ada", "bo", "cy")
    by_rater = [
        row | {"rater": rater}
        for row in (*RECORDS, *RATINGS)
        for rater in raters[: 2 + len(row["prompt"]) % 2]
    ]
    rows = {"sft": best, "bandit": logged, "dpo": RECORDS, "reward_model": by_rater}.get(
        config, [*RECORDS, *RATINGS]
    )
    path = place / f"{config}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def close(found: Tensor, whole: Tensor) -> None:
    assert float((found - whole).abs().max()) <= 1e-10 * float(whole.abs().max())


# -- what is changed ---------------------------------------------------------------------------------------------


def rank(number: int) -> Change:
    """From the last step on, gradients of every second row alone; what is only looked at is looked at whole."""

    def change(patch: pytest.MonkeyPatch, recipe: Any, clock: Clock) -> None:
        def share(packed: Packed, budget: int, rows: Tensor | None = None) -> list[Tensor]:
            if clock.taken == LAST and torch.is_grad_enabled():
                rows = (torch.arange(packed.rows) if rows is None else rows.sort().values)[number::RANKS]
            return micro_batches(packed, budget, rows)

        for room in {recipe, collect}:
            patch.setattr(
                room, "micro_batches", share, raising=room is collect or hasattr(room, "micro_batches")
            )

    return change


def permuted(patch: pytest.MonkeyPatch, recipe: Any, clock: Clock) -> None:
    """The batch's prompts come the other way round."""

    def turned(samples: Sequence[Any]) -> list[Any]:
        """Those of a prompt stay as they stand, since of equals the first is the best."""
        order = sorted({sample.prompt for sample in samples}, reverse=True)
        return [sample for prompt in order for sample in samples if sample.prompt == prompt]

    if hasattr(recipe, "Learner"):
        draw = online.draw

        def drawn(world: Any, *rest: Any, **names: Any) -> Drawn:
            found = draw(world, *rest, **names)
            if clock.taken < LAST - 1:
                return found
            samples = turned(found.samples)
            return Drawn(samples, online.judge(world, samples))

        patch.setattr(online, "draw", drawn)
        if hasattr(recipe, "judged_of_step"):
            of_step = recipe.judged_of_step

            def heard(*given: Any) -> tuple[Drawn, tuple[float, ...]]:
                found, scores = of_step(*given)
                if clock.taken < LAST - 1:
                    return found, scores
                by_place = {id(sample): score for sample, score in zip(found.samples, scores, strict=True)}
                samples = turned(found.samples)
                return Drawn(samples), tuple(by_place[id(sample)] for sample in samples)

            patch.setattr(recipe, "judged_of_step", heard)
        return
    name = "take_gradients" if hasattr(recipe, "take_gradients") else "train_on"
    learn = getattr(recipe, name)

    def backwards(batch: list[Any], *rest: Any) -> Any:
        return learn(batch[::-1] if clock.taken >= LAST - 1 else batch, *rest)

    patch.setattr(recipe, name, backwards)


def padded(patch: pytest.MonkeyPatch, recipe: Any, clock: Clock) -> None:
    """Five more columns and three more places a completion, which hold a token that may be drawn; never cut off."""
    take = Packed.take

    def whole_width(self: Packed, rows: Tensor) -> tuple[Packed, Tensor]:
        part, samples = take(self, rows)
        return wider(part, self.ids.shape[1], self.mask.shape[1]), samples

    def with_padding(*given: Any, **named: Any) -> Packed:
        packed = pack(*given, **named)
        more = (5, 3) if clock.taken >= LAST - 1 else (0, 0)
        return wider(packed, packed.ids.shape[1] + more[0], packed.mask.shape[1] + more[1])

    patch.setattr(Packed, "take", whole_width)
    for room in (recipe, collect, label_head):
        patch.setattr(room, "pack", with_padding, raising=False)


def wider(packed: Packed, columns: int, steps: int) -> Packed:
    old, width = packed, packed.ids.shape[1]

    def right(x: Tensor, size: int, value: int) -> Tensor:
        return nn.functional.pad(x, (0, size - x.shape[1]), value=value)

    def moved(flat: Tensor) -> Tensor:
        return flat // width * columns + flat % width

    return replace(
        old,
        ids=right(old.ids, columns, 7),
        positions=right(old.positions, columns, 0),
        segments=right(old.segments, columns, PADDING),
        tokens=right(old.tokens, steps, 7),
        mask=nn.functional.pad(old.mask, (0, steps - old.mask.shape[1]), value=False),
        predictor=right(moved(old.predictor).masked_fill(~old.mask, 0), steps, 0),
        last=moved(old.last),
    )


# -- the laws ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ALL)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tensor]:
    """A recipe, and the gradient of its whole batch."""
    return request.param, gradients(request.param, tmp_path_factory.mktemp("whole"))


def test_gradients_of_ranks_sum_to_those_of_the_whole_batch(case: tuple[str, Tensor], tmp_path: Path) -> None:
    name, whole = case
    parts = [gradients(name, tmp_path, rank(number)) for number in range(RANKS)]
    close(sum(parts, torch.zeros_like(whole)), whole)
    for part in parts:
        assert float((part - whole).norm()) > 0.01 * float(whole.norm()), "a rank has not the whole batch"
        assert float(part.norm()) > 0.01 * float(whole.norm()), "and it has some of it"


def test_the_order_of_a_batch_changes_no_gradient(case: tuple[str, Tensor], tmp_path: Path) -> None:
    name, whole = case
    if name != "sft, dropout":  # what it leaves out hangs on a row's number in its batch
        close(gradients(name, tmp_path, permuted), whole)


def test_padding_changes_no_gradient(case: tuple[str, Tensor], tmp_path: Path) -> None:
    name, whole = case
    close(gradients(name, tmp_path, padded), whole)


def one_process(number: int, place: str, name: str) -> None:
    """A rank: its own rows' gradients, summed over all processes."""
    own = Path(place) / f"rank-{number}"
    own.mkdir()
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=number, world_size=RANKS)
    found = gradients(name, own, rank(number))
    dist.all_reduce(found)
    save_file({"sum": found}, own / "sum.safetensors")
    dist.destroy_process_group()


def test_two_processes_find_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole = gradients("ppo", tmp_path)
    (tmp_path / "ranks").mkdir()
    spawn(one_process, args=(str(tmp_path / "ranks"), "ppo"), nprocs=RANKS)  # type: ignore[no-untyped-call]
    for number in range(RANKS):
        close(load_file(tmp_path / "ranks" / f"rank-{number}" / "sum.safetensors")["sum"], whole)
