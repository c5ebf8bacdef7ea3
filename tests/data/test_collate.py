"""Packing's laws: how samples share rows, are cut, padded or split changes no number beyond rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plaudit.data.collate import PADDING, Packed, micro_batches, pack
from plaudit.models.branch import Branch, final_scores, token_logprobs, token_values
from plaudit.models.load import load_model
from tiny_models import random_branch, random_ids

PROMPTS = [p for p, n in zip(random_ids(1, 4, 2, 9), (3, 1, 2, 4), strict=True) for _ in range(n)]
COMPLETIONS = random_ids(2, 10, 1, 7)
DRAWN = [[t % 3 != 1 or len(c) < 3 for t in range(len(c))] for c in COMPLETIONS]
HOLES = pytest.mark.parametrize("drawn", [None, DRAWN], ids=["all drawn", "holes"])
TIGHT = 1e-10

Drawn = list[list[bool]] | None


@pytest.fixture(scope="module")
def branch() -> Branch:
    return random_branch(load_model("tiny", torch.float64).trunk, seed=3)


def outputs(branch: Branch, packed: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = token_logprobs(branch, packed, temperature=0.9, entropy=True)
    return out.logprobs, out.entropies, token_values(branch, packed), final_scores(branch, packed)


def gradients(branch: Branch, parts: Sequence[tuple[Packed, Tensor]]) -> list[Tensor]:
    """Of one fixed sum over logprobs, values and scores, part after part; weights differ from token to token."""
    weights = torch.linspace(-1, 1, 10 * 8, dtype=torch.float64).view(10, 8)
    for parameter in branch.parameters():
        parameter.grad = None
    for packed, samples in parts:
        logprobs, _, values, scores = outputs(branch, packed)
        weight = weights[samples, : packed.mask.shape[1]]
        loss = (weight * logprobs).sum() + (weight * values.square()).sum() + (weight[:, 0] * scores).sum()
        torch.autograd.backward(loss)
    found = [p.grad for p in branch.parameters() if p.grad is not None]
    assert len(found) == len(branch.parameters())
    return [grad.clone() for grad in found]


def close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = TIGHT) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert float((x - y).detach().abs().max()) <= tolerance


@HOLES
def test_shared_prompt_rows_equal_each_sample_alone(branch: Branch, drawn: Drawn) -> None:
    packed = pack(PROMPTS, COMPLETIONS, action_masks=drawn)
    assert packed.rows == 4, "the rows share their prompts"
    together = outputs(branch, packed)
    alone = [
        (pack([p], [c], action_masks=drawn and [drawn[i]]), torch.tensor([i]))
        for i, (p, c) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True))
    ]
    for sample, (one, _) in enumerate(alone):
        assert one.rows == 1
        for whole, part in zip(together, outputs(branch, one), strict=True):
            row = whole[sample, : part.shape[1]] if whole.ndim == 2 else whole[sample]
            assert float((row - part[0]).detach().abs().max()) < TIGHT
    all_samples = torch.arange(len(PROMPTS))
    close(gradients(branch, [(packed, all_samples)]), gradients(branch, alone))


def test_what_is_where_by_hand() -> None:
    """Two samples of [5, 6, 7] and one of [8]: every field written out."""
    packed = pack([[5, 6, 7], [5, 6, 7], [8]], [[9, 0], [10], [0]])
    assert packed.ids.tolist() == [[5, 6, 7, 9, 0, 10], [8, 0, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 0, 0, 0, 0]]
    assert packed.segments.tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, -1, -1, -1, -1]]
    assert packed.tokens.tolist() == [[9, 0], [10, 0], [0, 0]]
    assert packed.mask.tolist() == [[True, True], [True, False], [True, False]]
    assert packed.predictor[packed.mask].tolist() == [2, 3, 2, 6]
    assert packed.last.tolist() == [4, 5, 7]
    assert packed.row.tolist() == [0, 0, 1]
    seen = packed.visible()[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_what_is_where_with_observations_by_hand() -> None:
    """[5, 6, 7] answered by 9, told 0 20, answered by 10; by 11 and told 30; by 12."""
    packed = pack(
        [[5, 6, 7]] * 3,
        [[9, 0, 20, 10], [11, 30], [12]],
        action_masks=[[True, False, False, True], [True, False], None],
    )
    assert packed.ids.tolist() == [[5, 6, 7, 9, 0, 20, 10, 11, 30, 12]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 3]]
    assert packed.segments.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2, 3]]
    assert packed.tokens.tolist() == [[9, 0, 20, 10], [11, 30, 0, 0], [12, 0, 0, 0]]
    assert packed.mask.tolist() == [
        [True, False, False, True], [True, False, False, False], [True, False, False, False]
    ]  # fmt: skip
    assert packed.predictor.tolist() == [[2, 0, 0, 5], [2, 0, 0, 0], [2, 0, 0, 0]]
    assert packed.own().tolist() == [[3, 4, 5, 6], [7, 8, 8, 8], [9, 9, 9, 9]]
    assert packed.last.tolist() == [6, 8, 9], "a completion that ends with an observation ends there"
    assert packed.final().tolist() == [
        [False, False, False, True], [True, False, False, False], [True, False, False, False]
    ]  # fmt: skip
    assert packed.lengths.tolist() == [4, 2, 1]


def test_rows_are_cut_to_their_longest_completion_not_to_what_was_drawn_of_it() -> None:
    packed = pack([[5], [6]], [[1, 2, 3, 4], [7, 8]], action_masks=[[True, False, False, True], None])
    first, second = (packed.take(torch.tensor([row]))[0] for row in (0, 1))
    assert first.mask.tolist() == [[True, False, False, True]]
    assert first.tokens.tolist() == [[1, 2, 3, 4]]
    assert first.predictor.tolist() == [[0, 0, 0, 3]]
    assert first.own().tolist() == [[1, 2, 3, 4]]
    assert second.mask.tolist() == [[True, True]]
    assert second.own().tolist() == [[1, 2]]


def test_observations_are_read_and_not_counted(branch: Branch) -> None:
    """What is drawn has the numbers that it has where all is drawn; what is observed has none, and is attended to."""
    holes, all_drawn = pack(PROMPTS, COMPLETIONS, action_masks=DRAWN), pack(PROMPTS, COMPLETIONS)
    assert not bool(holes.mask.all())
    for some, whole in zip(outputs(branch, holes), outputs(branch, all_drawn), strict=True):
        expected = whole * holes.mask if whole.ndim == 2 else whole
        close([some], [expected])
    one, two = (
        outputs(branch, pack([[4, 5]], [[7, told, 9]], action_masks=[[True, False, True]]))[0]
        for told in (300, 301)
    )
    assert ((one - two).abs() > 1e-6).tolist() == [[False, False, True]]


def test_without_holes_nothing_is_another_bit(branch: Branch) -> None:
    plain = pack(PROMPTS, COMPLETIONS)
    told = pack(PROMPTS, COMPLETIONS, action_masks=[[True] * len(c) for c in COMPLETIONS])
    for x, y in zip(outputs(branch, plain), outputs(branch, told), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("mask", [[True], [True, False, True], [False, False], []], ids=str)
def test_an_action_mask_that_does_not_fit_is_refused(mask: list[bool]) -> None:
    with pytest.raises(ValueError, match="sample 1 has 2 tokens and an action mask of"):
        pack([[1], [1]], [[5], [6, 7]], action_masks=[None, mask])


def test_take_and_micro_batches_by_hand() -> None:
    packed = pack([[5, 6, 7], [5, 6, 7], [8], [4, 4]], [[9, 0], [10], [0], [3]])
    part, samples = packed.take(torch.tensor([2, 1]))
    assert samples.tolist() == [3, 2]
    assert part.ids.tolist() == [[4, 4, 3], [8, 0, 0]]
    assert part.predictor.tolist() == [[1], [3]]
    assert part.last.tolist() == [2, 4]
    assert part.row.tolist() == [0, 1]
    assert part.tokens.tolist() == [[3], [0]]
    assert [group.tolist() for group in micro_batches(packed, 6)] == [[0], [2, 1]]
    assert [group.tolist() for group in micro_batches(packed, 12)] == [[0, 2], [1]]
    assert [group.tolist() for group in micro_batches(packed, 1)] == [[0], [2], [1]]
    assert [group.tolist() for group in micro_batches(packed, 99, torch.tensor([1, 0]))] == [[0, 1]]


ids = st.lists(st.integers(0, 713), min_size=1, max_size=6)
batches = st.lists(st.tuples(st.integers(0, 2), ids), min_size=1, max_size=7)


@given(st.lists(ids, min_size=3, max_size=3), batches, st.integers(1, 30), st.data())
@settings(max_examples=150)
def test_taking_rows_equals_packing_their_samples(
    prompts: list[list[int]], batch: list[tuple[int, list[int]]], max_row: int, data: st.DataObject
) -> None:
    """Of any rows in any order: every field that a model reads is what packing those samples alone gives."""
    owners, completions = [prompts[p] for p, _ in batch], [c for _, c in batch]
    drawn = [
        data.draw(st.none() | st.lists(st.booleans(), min_size=len(c), max_size=len(c)).filter(any))
        for c in completions
    ]
    packed = pack(owners, completions, action_masks=drawn, max_row=max_row)
    wanted = data.draw(st.permutations(range(packed.rows)))[: data.draw(st.integers(1, packed.rows))]
    part, samples = packed.take(torch.tensor(wanted))
    chosen = [s for row in wanted for s in range(len(batch)) if int(packed.row[s]) == row]
    assert samples.tolist() == chosen
    widths = (packed.segments[wanted] != PADDING).sum(1)
    assert part.ids.shape == (len(wanted), int(widths.max()))
    for place, row in enumerate(wanted):
        members = [s for s in chosen if int(packed.row[s]) == row]
        alone = pack(
            [owners[s] for s in members],
            [completions[s] for s in members],
            action_masks=[drawn[s] for s in members],
            max_row=10_000,
        )
        width = alone.ids.shape[1]
        assert alone.rows == 1
        for name in ("ids", "positions", "segments"):
            assert torch.equal(getattr(part, name)[place, :width], getattr(alone, name)[0])
            rest = getattr(part, name)[place, width:]
            assert bool((rest == (PADDING if name == "segments" else 0)).all())
        here = [chosen.index(s) for s in members]
        steps = alone.mask.shape[1]
        assert torch.equal(part.mask[here, :steps], alone.mask)
        assert not bool(part.mask[here, steps:].any())
        assert torch.equal(part.tokens[here, :steps], alone.tokens)
        offset = place * part.ids.shape[1]
        kept = part.predictor[here, :steps][alone.mask]
        assert torch.equal(kept, alone.predictor[alone.mask] + offset)
        assert torch.equal(part.own()[here, :steps], alone.own() + offset)
        assert torch.equal(part.last[here], alone.last + offset)
        assert torch.equal(part.lengths[here], alone.lengths)
        assert part.row[here].tolist() == [place] * len(members)
    assert torch.equal(part.ids.flatten()[part.last], torch.tensor([completions[s][-1] for s in chosen]))


@given(st.lists(ids, min_size=3, max_size=3), batches, st.integers(1, 30))
@settings(max_examples=100)
def test_packing_keeps_every_token_and_its_order(
    prompts: list[list[int]], batch: list[tuple[int, list[int]]], max_row: int
) -> None:
    owners, completions = [prompts[p] for p, _ in batch], [c for _, c in batch]
    packed = pack(owners, completions, max_row=max_row)
    assert packed.mask.sum(1).tolist() == [len(c) for c in completions]
    flat_positions, flat_ids = packed.positions.flatten(), packed.ids.flatten()
    rows_used = (packed.segments != PADDING).sum(1)
    for sample, (prompt, completion) in enumerate(zip(owners, completions, strict=True)):
        count, row = len(completion), int(packed.row[sample])
        assert packed.tokens[sample, :count].tolist() == completion
        assert packed.ids[row, : len(prompt)].tolist() == prompt
        before = packed.predictor[sample, :count]
        assert flat_ids[before].tolist() == [prompt[-1], *completion[:-1]]
        assert flat_positions[before].tolist() == [len(prompt) - 1 + t for t in range(count)]
        assert int(flat_positions[packed.last[sample]]) == len(prompt) + count - 1
    for row in range(packed.rows):
        members = torch.nonzero(packed.row == row)[:, 0]
        assert len(members) == 1 or int(rows_used[row]) <= max_row


@given(batches, st.integers(1, 60), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_micro_batches_take_each_row_once_within_the_budget(
    batch: list[tuple[int, list[int]]], budget: int, random: Random
) -> None:
    packed = pack([[p] for p, _ in batch], [c for _, c in batch], max_row=9)
    lengths = (packed.segments != PADDING).sum(1)
    groups = micro_batches(packed, budget)
    assert sorted(torch.cat(groups).tolist()) == list(range(packed.rows))
    for group in groups:
        assert len(group) == 1 or int(lengths[group].max()) * len(group) <= budget
    shuffled = list(range(packed.rows))
    random.shuffle(shuffled)
    again = micro_batches(packed, budget, torch.tensor(shuffled))
    assert [g.tolist() for g in again] == [g.tolist() for g in groups], "the order of rows changes nothing"


@pytest.mark.parametrize("budget", [1, 20, 45])
@HOLES
def test_the_split_into_micro_batches_changes_nothing(branch: Branch, budget: int, drawn: Drawn) -> None:
    packed = pack(PROMPTS, COMPLETIONS, action_masks=drawn, max_row=16)
    whole = outputs(branch, packed)
    groups = micro_batches(packed, budget)
    assert len(groups) > 1
    parts = [packed.take(rows) for rows in groups]
    for part, samples in parts:
        for all_of, some in zip(whole, outputs(branch, part), strict=True):
            expected = all_of[samples, : some.shape[1]] if some.ndim == 2 else all_of[samples]
            close([some], [expected])
    close(gradients(branch, parts), gradients(branch, [(packed, torch.arange(10))]))


@pytest.mark.parametrize("max_row", [1, 12, 1024])
@HOLES
def test_how_many_samples_share_a_row_changes_nothing(branch: Branch, max_row: int, drawn: Drawn) -> None:
    close(
        outputs(branch, pack(PROMPTS, COMPLETIONS, action_masks=drawn, max_row=max_row)),
        outputs(branch, pack(PROMPTS, COMPLETIONS, action_masks=drawn)),
    )


def padded(packed: Packed, more: int, content: int) -> Packed:
    """The same samples with `more` columns of padding, and anything in every padded column."""
    width = packed.ids.shape[1]
    pad = torch.nn.functional.pad
    segments = pad(packed.segments, (0, more), value=PADDING)

    def move(flat: Tensor) -> Tensor:
        return flat // width * (width + more) + flat % width

    return replace(
        packed,
        ids=pad(packed.ids, (0, more)).masked_fill(segments == PADDING, content),
        positions=pad(packed.positions, (0, more)).masked_fill(segments == PADDING, content % 50),
        segments=segments,
        predictor=move(packed.predictor),
        last=move(packed.last),
    )


@pytest.mark.parametrize(("more", "content"), [(0, 1), (1, 0), (9, 713)])
@HOLES
def test_padding_and_what_stands_in_it_change_nothing(
    branch: Branch, more: int, content: int, drawn: Drawn
) -> None:
    packed = pack(PROMPTS, COMPLETIONS, action_masks=drawn)
    other = padded(packed, more, content)
    close(outputs(branch, other), outputs(branch, packed))
    everyone = torch.arange(10)
    close(gradients(branch, [(other, everyone)]), gradients(branch, [(packed, everyone)]))


def test_a_completion_cannot_see_another_nor_a_token_its_future(branch: Branch) -> None:
    packed = pack([[4, 5, 6]] * 3, [[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    assert packed.rows == 1
    before = outputs(branch, packed)
    ids = packed.ids.clone()
    ids[0, 3 + 3 + 1] = 99  # the second token of the second completion
    tokens = packed.tokens.clone()
    tokens[1, 1] = 99
    after = outputs(branch, replace(packed, ids=ids, tokens=tokens))
    for name, old, new in zip(("logprobs", "entropies", "values", "scores"), before, after, strict=True):
        changed = (old - new).abs() > 1e-9
        assert not bool(changed[[0, 2]].any()), f"{name} of another completion"
        if old.ndim == 2:
            # The logprob of the token itself changes, the state before it does not.
            assert changed[1].tolist() == [False, name == "logprobs", True], name
        else:
            assert bool(changed[1])


def test_a_pad_or_end_of_text_token_within_a_completion_counts(branch: Branch) -> None:
    packed = pack([[0, 7]], [[0, 1, 0, 0]])
    assert packed.mask.tolist() == [[True] * 4]
    logprobs, _, values, _ = outputs(branch, packed)
    assert bool((logprobs < -1).all())
    assert len(set(values[0].tolist())) == 4
    reads = outputs(branch, pack([[9, 7]], [[0, 1, 0, 0]]))
    assert bool(((logprobs - reads[0]).abs() > 1e-6).all()), "a pad token in the prompt is read, too"


@HOLES
def test_outputs_are_zero_where_the_mask_is_false(branch: Branch, drawn: Drawn) -> None:
    packed = pack(PROMPTS, COMPLETIONS, action_masks=drawn)
    for out in outputs(branch, packed)[:3]:
        assert not bool(out[~packed.mask].any())
        assert bool((out[packed.mask] != 0).all())


def test_values_stand_before_their_token_and_scores_at_the_last(branch: Branch) -> None:
    """The value of token t is the head's number at the token before; the score is at the last token itself."""
    prompt, completion = [4, 5, 6], [10, 11, 12]
    values = token_values(branch, pack([prompt], [completion]))[0]
    for t in range(3):
        upto = prompt + completion[:t]
        score = final_scores(branch, pack([upto[:1]], [upto[1:]]))
        close([values[t]], [score[0]])


@pytest.mark.parametrize(("prompts", "completions"), [([[]], [[1]]), ([[1]], [[]])])
def test_nothing_is_refused(prompts: list[list[int]], completions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="empty"):
        pack(prompts, completions)


def test_another_count_of_prompts_than_of_completions_is_refused() -> None:
    with pytest.raises(ValueError):
        pack([[1]], [[1], [2]])


def test_what_is_not_together_does_not_share_a_row() -> None:
    prompts, completions = [[1, 2]] * 4, [[3], [4, 5], [6], [7]]
    assert pack(prompts, completions).row.tolist() == [0, 0, 0, 0]
    assert pack(prompts, completions, together=[5, 5, 0, 0]).row.tolist() == [0, 0, 1, 1]
    assert pack([[1], [1], [2], [2]], completions, together=[0] * 4).row.tolist() == [0, 0, 1, 1]
