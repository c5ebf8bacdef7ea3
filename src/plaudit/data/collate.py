"""Packing: several completions of one prompt stand in one row, so that the prompt is computed once.

A row is [prompt, completion 1, completion 2, ...], right-padded. Completions see the prompt and themselves, never
each other, and each continues the prompt's positions. How samples were packed changes no number beyond rounding.

A completion of several turns holds observations between them: tokens that the policy was told and did not draw. They
stand in the row and are attended to, and the mask is False there: no loss, mean or reward counts them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.randomness import rng

PADDING = -1


@dataclass(frozen=True, slots=True)
class Packed:
    """R rows of S columns that hold B samples of up to T completion tokens.

    ids, positions [R, S] long; segments [R, S] long: 0 prompt, 1.. the row's completions, -1 padding.
    tokens [B, T] long, mask [B, T] bool (True: a token that the policy drew; from lengths and action masks, never
    from ids). predictor [B, T] long: where in the flattened [R * S] columns the state stands that predicts the
    token, and the state whose value it is (0 where the mask is False); last [B] long: where the completion's last
    token stands, observation or not. row [B] long. lengths [B] long: tokens of the completion, observations counted.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    tokens: Tensor
    mask: Tensor
    predictor: Tensor
    last: Tensor
    row: Tensor
    lengths: Tensor

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def visible(self) -> Tensor:
        """[R, S, S] bool: True where column s may look at column k."""
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return ((key == 0) | (key == query)) & (columns[None, :] <= columns[:, None])

    def own(self) -> Tensor:
        """[B, T] long: where each completion token itself stands, observations too; beyond the last, the last."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        return self.last[:, None] - (self.lengths[:, None] - 1 - steps).clamp(min=0)

    def final(self) -> Tensor:
        """[B, T] bool: True at the last token of each completion that the mask counts, and there alone."""
        place = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return place == (self.mask * place).amax(1, keepdim=True)

    def minibatches(self, count: int, *key: int | str) -> Iterator[tuple[Tensor, int, int]]:
        """Rows of at most `count` minibatches in a keyed order, each with its count of tokens and of samples."""
        order = torch.from_numpy(rng(*key).permutation(self.rows)).to(self.ids.device)
        for rows in order.tensor_split(min(count, self.rows)):
            mine = torch.isin(self.row, rows)
            yield rows, int(self.mask[mine].sum()), int(mine.sum())

    def take(self, rows: Tensor) -> tuple[Packed, Tensor]:
        """These rows alone, cut to their longest, and the samples [b] that stand in them."""
        width, old = self.ids.shape[1], self.row
        place = torch.full((self.rows,), -1, dtype=torch.long, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        samples = torch.nonzero(place[old] >= 0)[:, 0]
        samples = samples[torch.argsort(place[old[samples]], stable=True)]
        cut = int((self.segments[rows] != PADDING).sum(1).max())
        steps = int(self.lengths[samples].max())
        row = place[old[samples]]

        def move(flat: Tensor, index: Tensor) -> Tensor:
            return flat % width + index * cut

        mask = self.mask[samples, :steps]
        part = Packed(
            ids=self.ids[rows, :cut],
            positions=self.positions[rows, :cut],
            segments=self.segments[rows, :cut],
            tokens=self.tokens[samples, :steps],
            mask=mask,
            predictor=move(self.predictor[samples, :steps], row[:, None]).masked_fill(~mask, 0),
            last=move(self.last[samples], row),
            row=row,
            lengths=self.lengths[samples],
        )
        return part, samples


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    action_masks: Sequence[Sequence[bool] | None] | None = None,
    together: Sequence[int] | None = None,
    max_row: int = 1024,
    most: int = sys.maxsize,
    device: torch.device | str = "cpu",
) -> Packed:
    """Pack samples; neighbours with the same prompt share a row while it has room for max_row tokens.

    prompts, completions: one of each a sample; neither may be empty. action_masks: one a sample, False at the tokens
    of its completion that the policy did not draw (observations); None: all were drawn. together: a number a sample; a
    row holds samples of one number alone (None: whichever share a prompt). most: samples that a row holds at most, so
    that a split by rows has something to split. Samples keep their order.
    Raises ValueError for what is empty, and for an action mask of another length or without a drawn token.
    """
    action_masks = [None] * len(completions) if action_masks is None else action_masks
    drawn = [
        [True] * len(completion) if action is None else list(action)
        for completion, action in zip(completions, action_masks, strict=True)
    ]
    rows: list[list[int]] = []  # sample indices
    used = 0
    for sample, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not prompt or not completion:
            raise ValueError(f"sample {sample} has an empty {'completion' if prompt else 'prompt'}")
        if len(drawn[sample]) != len(completion) or not any(drawn[sample]):
            raise ValueError(
                f"sample {sample} has {len(completion)} tokens and an action mask of {len(drawn[sample])}, "
                f"{sum(drawn[sample])} of them drawn"
            )
        shared = rows and list(prompts[rows[-1][0]]) == list(prompt)
        if shared and together is not None:
            shared = together[rows[-1][0]] == together[sample]
        if shared and used + len(completion) <= max_row and len(rows[-1]) < most:
            rows[-1].append(sample)
            used += len(completion)
        else:
            rows.append([sample])
            used = len(prompt) + len(completion)

    width = max(len(prompts[row[0]]) + sum(len(completions[s]) for s in row) for row in rows)
    steps = max(len(completion) for completion in completions)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), PADDING, dtype=torch.long)
    tokens = torch.zeros(len(completions), steps, dtype=torch.long)
    mask = torch.zeros(len(completions), steps, dtype=torch.bool)
    predictor = torch.zeros(len(completions), steps, dtype=torch.long)
    last = torch.zeros(len(completions), dtype=torch.long)
    owner = torch.zeros(len(completions), dtype=torch.long)

    for row, members in enumerate(rows):
        prompt = prompts[members[0]]
        start = len(prompt)
        ids[row, :start] = torch.tensor(prompt)
        positions[row, :start] = torch.arange(start)
        segments[row, :start] = 0
        for segment, sample in enumerate(members, start=1):
            completion = completions[sample]
            end = start + len(completion)
            ids[row, start:end] = torch.tensor(completion)
            positions[row, start:end] = torch.arange(len(prompt), len(prompt) + len(completion))
            segments[row, start:end] = segment
            tokens[sample, : len(completion)] = ids[row, start:end]
            mask[sample, : len(completion)] = torch.tensor(drawn[sample])
            predictor[sample, 0] = row * width + len(prompt) - 1
            predictor[sample, 1 : len(completion)] = row * width + torch.arange(start, end - 1)
            last[sample] = row * width + end - 1
            owner[sample] = row
            start = end
    predictor.masked_fill_(~mask, 0)
    lengths = torch.tensor([len(completion) for completion in completions])
    fields = (ids, positions, segments, tokens, mask, predictor, last, owner, lengths)
    return Packed(*(field.to(device) for field in fields))


def micro_batches(packed: Packed, budget: int, rows: Tensor | None = None) -> list[Tensor]:
    """Rows (None: all) in groups of at most `budget` columns, padding counted; a longer row stands alone.

    They are sorted by length, so that there is little padding, and then by number: the order in which rows are
    named changes nothing, and a first epoch over all rows repeats the rollout's batches bit for bit.
    """
    rows = torch.arange(packed.rows, device=packed.ids.device) if rows is None else rows.sort().values
    lengths = (packed.segments[rows] != PADDING).sum(1)
    order = torch.argsort(lengths, descending=True, stable=True)
    groups: list[list[int]] = []
    widest = 0
    for place in order.tolist():
        widest = max(widest, int(lengths[place]))
        if groups and widest * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(int(rows[place]))
        else:
            groups.append([int(rows[place])])
            widest = int(lengths[place])
    return [torch.tensor(group, device=packed.ids.device) for group in groups]
