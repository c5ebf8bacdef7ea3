"""Operations counted against arithmetic by hand."""

from __future__ import annotations

import pytest
from speed import operations
from speed.batches import Batch
from speed.cases import CASES, phases_of
from speed.operations import Phase, Row, Size

SMALL = Size(depth=2, width=4, heads=2, kv_heads=1, head_width=2, mlp_width=8, vocab=10)
"""A block: q 16, k 8, v 8, o 16, three of the MLP 32 each: 144. The output layer: 40."""
SMOLLM2 = {
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
}  # fmt: skip


def test_weights_are_those_of_the_model() -> None:
    assert (SMALL.block, SMALL.head, SMALL.weights) == (144, 40, 328)
    size = Size.of(SMOLLM2)
    assert size.depth * size.block == 106_168_320
    assert size.weights == 134_479_872  # and 35,136 of norms: SmolLM2-135M's 134,515,008


def test_a_shared_prompt_counts_once() -> None:
    # A prompt of 2 and two answers of 1: 4 tokens; looks 1 + 2, then 3 for each answer: 9; 2 tokens are predicted.
    row = Row(2, [1, 1])
    assert (row.tokens, row.looks, row.read) == (4, 9, 2)
    apart = [Row(2, [1]), Row(2, [1])]
    assert [one.looks for one in apart] == [6, 6]
    # 2 blocks x 144 x 4 tokens x 2, attention 4 x 2 blocks x 2 heads x 2 wide x 9 looks, output layer 2 x 40 x 2.
    assert operations.forward(SMALL, [row]).operations == 2304 + 288 + 160
    assert operations.forward(SMALL, [row], head=False).operations == 2304 + 288
    assert operations.forward(SMALL, [row], head=False, blocks=1).operations == (2304 + 288) / 2
    assert operations.forward(SMALL, apart).operations == 2 * 2 * 144 * 6 + 4 * 8 * 12 + 160


def test_backward_is_twice_forward_and_frozen_weights_have_no_gradient() -> None:
    row = Row(2, [1, 1])
    assert operations.backward(SMALL, [row]).operations == 2 * (2304 + 288 + 160)
    # The top block alone: its inputs' gradients 2 x 144 x 4, attention 8 x 2 x 2 x 9, output layer 2 x 40 x 2.
    assert operations.backward(SMALL, [row], adapted=1).operations == 1152 + 288 + 160
    assert operations.adamw(SMALL).bytes == 7 * 4 * 328
    assert operations.adamw(SMALL, 1).bytes == 0


def test_drawing_reads_weights_and_caches_once_a_step() -> None:
    # A prompt of 2, two completions of 3, weights of 2 bytes: the prompt, then two steps for both completions.
    phases = operations.sampling(SMALL, [Row(2, [3, 3])], 2)
    first, second, third = phases
    assert first == Phase(2 * 2 * 144 * 2 + 4 * 8 * 3 + 2 * 40, 656)
    # Two tokens through all 328 weights; each looks at 3. The cache: 2 x 2 blocks x 1 head x 2 wide x 2 bytes = 16 a
    # token, of the prompt's 2 once and 1 of each completion.
    assert second == Phase(2 * 2 * 328 + 4 * 8 * 6, 656 + 16 * 4)
    assert third == Phase(2 * 2 * 328 + 4 * 8 * 8, 656 + 16 * 6)


def test_a_phase_takes_as_long_as_what_is_slower() -> None:
    assert Phase(3e9, 1e9).seconds(gemm=1.0, copy=1.0) == 3.0
    assert Phase(1e9, 2e9).seconds(gemm=1.0, copy=1.0) == 2.0
    assert operations.ceiling([Phase(3e9, 1e9), Phase(1e9, 2e9)], 1.0, 1.0) == 5.0


def test_what_an_epoch_of_ppo_adds_is_a_pass_and_its_gradients() -> None:
    size, rows = Size.of(SMOLLM2), [Row(64, [64])] * 2
    whole = next(case for case in CASES["ppo"] if case.train == "full")

    def total(epochs: int) -> float:
        return sum(phase.operations for phase in phases_of(whole, rows, size, epochs))

    policy, value = operations.forward(size, rows), operations.forward(size, rows, head=False)
    assert total(4) - total(3) == pytest.approx(3 * (policy.operations + value.operations))


def test_lora_asks_for_less_than_full_fine_tuning() -> None:
    size = Size.of(SMOLLM2)
    for name in ("sft", "dpo", "grpo", "ppo"):
        batch = Batch([], [], [Row(64, [64])], 128)
        sums = {c.train: sum(p.operations for p in phases_of(c, batch.rows, size)) for c in CASES[name]}
        assert sums["top"] < sums["full"], name
