"""Attention within packed rows, tile by tile: a tile's queries see one run of keys, and no product is made for others.

On a CPU, two batched products and a softmax over tiles of equal shape are several times as fast as torch's own
attention kernel forward and backward; and completions that share a row pay for the keys that
they see, not for the row's width. The scores are float32 (or wider), whatever the dtype of keys and queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PADDING = -1
LONGEST = 256
"""Queries a tile: those of a longer text stand in several, whose keys end with their last query."""
SLACK = 128 * 128
"""Query-key pairs that a tile may be padded by: what a further product of its own costs in fixed time."""
KEPT = 512
"""Keys a tile up to which its probabilities are kept for the backward pass; beyond, they are worked out again."""


class Tile(NamedTuple):
    """Queries [start, stop) of the flat tokens; they see tokens [prompt, prompt_end) and, causally, [begin, stop)."""

    start: int
    stop: int
    prompt: int
    prompt_end: int
    begin: int

    @property
    def keys(self) -> int:
        return self.prompt_end - self.prompt + self.stop - self.begin


@dataclass(frozen=True, slots=True)
class Group:
    """n tiles of one shape. queries [n, T], keys [n, K] long: places among the flat tokens. bias [1 or n, 1, 1, T, K]
    float32: 0 where a query sees a key, else -inf; a query that only pads its tile sees the first key. real
    [n, 1, 1, T, 1] bool: False at those; None where there are none."""

    queries: Tensor
    keys: Tensor
    bias: Tensor
    real: Tensor | None


@dataclass(frozen=True, slots=True)
class Tiles:
    """Who sees whom in packed rows, for a forward pass over their tokens without padding.

    real [N] long: where in the flattened [R * S] columns each token stands; places: R * S. answer [N] long: where a
    token's output stands among all groups' queries, tile after tile.
    """

    real: Tensor
    places: int
    groups: tuple[Group, ...]
    answer: Tensor

    def flatten(self, x: Tensor) -> Tensor:
        """[R, S, ...] -> [1, N, ...], without the padding."""
        flat = x.reshape(1, self.places, *x.shape[2:])
        return flat if len(self.real) == self.places else flat.index_select(1, self.real)

    def unflatten(self, flat: Tensor, rows: int) -> Tensor:
        """[1, N, ...] -> [R, S, ...], 0 at the padding."""
        if len(self.real) != self.places:
            empty = flat.new_zeros(1, self.places, *flat.shape[2:])
            flat = empty.index_copy(1, self.real, flat)
        return flat.reshape(rows, self.places // rows, *flat.shape[2:])


def tiles_of(segments: Tensor) -> Tiles:
    """segments [R, S]: 0 a prompt, 1.. the completions that see it and themselves, -1 padding (see data.collate)."""
    real = torch.nonzero((segments != PADDING).flatten())[:, 0]
    tiles, at = list[Tile](), 0
    for row in segments.cpu():
        counts = torch.bincount(row[row != PADDING]).tolist()
        prompt, *completions = counts
        if len(completions) < 2:  # one text: nobody else sees its prompt
            tiles += _split(at, at + sum(counts), at, at, at)
        else:
            tiles += _split(at, at + prompt, at, at, at)
            start = at + prompt
            for length in completions:
                tiles += _split(start, start + length, at, at + prompt, start)
                start += length
        at += sum(counts)
    groups = list[list[Tile]]()
    for tile in sorted(tiles, key=lambda tile: (tile.keys, tile.stop - tile.start), reverse=True):
        if groups and _fits(tile, groups[-1][0]):
            groups[-1].append(tile)
        else:
            groups.append([tile])
    answer, filled = torch.empty(at, dtype=torch.long), 0
    for group in groups:
        width = group[0].stop - group[0].start
        for tile in group:
            answer[tile.start : tile.stop] = filled + torch.arange(tile.stop - tile.start)
            filled += width
    made = tuple(_group(group, segments.device) for group in groups)
    return Tiles(real, segments.numel(), made, answer.to(segments.device))


def _split(start: int, stop: int, prompt: int, prompt_end: int, begin: int) -> list[Tile]:
    return [
        Tile(at, min(at + LONGEST, stop), prompt, prompt_end, begin) for at in range(start, stop, LONGEST)
    ]


def _fits(tile: Tile, head: Tile) -> bool:
    queries, most = tile.stop - tile.start, head.stop - head.start
    return queries <= most and most * head.keys - queries * tile.keys <= SLACK


def _group(tiles: list[Tile], device: torch.device) -> Group:
    most, widest = tiles[0].stop - tiles[0].start, tiles[0].keys
    queries = torch.zeros(len(tiles), most, dtype=torch.long)
    keys = torch.zeros(len(tiles), widest, dtype=torch.long)
    bias = torch.full((len(tiles), most, widest), -torch.inf)
    real = torch.zeros(len(tiles), most, dtype=torch.bool)
    for n, tile in enumerate(tiles):
        count, shared = tile.stop - tile.start, tile.prompt_end - tile.prompt
        queries[n, :count] = torch.arange(tile.start, tile.stop)
        real[n, :count] = True
        keys[n, :shared] = torch.arange(tile.prompt, tile.prompt_end)
        keys[n, shared : tile.keys] = torch.arange(tile.begin, tile.stop)
        own = torch.arange(tile.begin, tile.stop) <= torch.arange(tile.start, tile.stop)[:, None]
        bias[n, :count, :shared] = 0
        bias[n, :count, shared : tile.keys].masked_fill_(own, 0)
        bias[n, count:, 0] = 0
    if bool((bias == bias[:1]).all()):
        bias = bias[:1]
    padded = None if bool(real.all()) else real[:, None, None, :, None].to(device)
    return Group(queries.to(device), keys.to(device), bias[:, None, None].to(device), padded)


def attend(query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
    """query [N, heads, width], key and value [N, kv_heads, width], of the flat tokens -> [N, heads, width]. Query head
    h reads key head h // (heads / kv_heads)."""
    out: Tensor = _Attend.apply(query, key, value, tiles)  # type: ignore[no-untyped-call]
    return out


def _gather(x: Tensor, places: Tensor, sets: int) -> Tensor:
    """x [N, sets * each, D], places [n, T] -> [n * sets, each * T, D], set by set."""
    _, heads, width = x.shape
    each = heads // sets
    head = torch.arange(heads, device=x.device).view(1, sets, each, 1)
    index = places[:, None, None, :] * heads + head
    return x.reshape(-1, width).index_select(0, index.flatten()).view(-1, each * places.shape[1], width)


def _scatter(parts: list[Tensor], tiles: Tiles, heads: int, sets: int) -> Tensor:
    """What stands in the tiles' queries, [n * sets, each * T, D] a group -> [N, heads, D]."""
    each = heads // sets
    ordered = [
        part.view(len(group.queries), sets, each, -1, part.shape[-1]).permute(0, 3, 1, 2, 4).flatten(0, 1)
        for part, group in zip(parts, tiles.groups, strict=True)
    ]
    return torch.cat(ordered).index_select(0, tiles.answer).flatten(1, 2)


def _probabilities(query: Tensor, key: Tensor, group: Group, scale: float) -> Tensor:
    """[n * kv_heads, each * T, K] in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.bmm(query.to(wide) * scale, key.to(wide).transpose(1, 2))
    n, (steps, keys) = len(group.queries), group.bias.shape[-2:]
    scores.view(n, scores.shape[0] // n, -1, steps, keys).add_(group.bias.to(wide))
    return torch.softmax(scores, -1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
        sets, scale = key.shape[1], query.shape[2] ** -0.5
        outs, kept = list[Tensor](), list[Tensor]()
        for group in tiles.groups:
            mine = _probabilities(
                _gather(query, group.queries, sets), _gather(key, group.keys, sets), group, scale
            ).to(query.dtype)
            outs.append(torch.bmm(mine, _gather(value, group.keys, sets)))
            if group.keys.shape[1] <= KEPT and any(ctx.needs_input_grad):
                kept.append(mine)
        ctx.tiles = tiles
        ctx.save_for_backward(query, key, value, *kept)
        return _scatter(outs, tiles, query.shape[1], sets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        sets, scale = key.shape[1], query.shape[2] ** -0.5
        wide = torch.promote_types(query.dtype, torch.float32)
        of_key, of_value = (torch.zeros(key.shape, dtype=wide, device=key.device) for _ in range(2))
        of_query = list[Tensor]()
        for group in tiles.groups:
            q, k, v = (
                _gather(x, places, sets)
                for x, places in ((query, group.queries), (key, group.keys), (value, group.keys))
            )
            if group.keys.shape[1] <= KEPT:
                probs = kept.pop(0)
            else:
                probs = _probabilities(q, k, group, scale).to(query.dtype)
            up = _gather(grad, group.queries, sets)
            if group.real is not None:
                up.view(len(group.queries), sets, -1, group.queries.shape[1], up.shape[2]).mul_(group.real)
            slope = torch._softmax_backward_data(torch.bmm(up, v.transpose(1, 2)), probs, -1, probs.dtype)
            of_query.append(torch.bmm(slope, k) * scale)
            for total, part in (
                (of_key, torch.bmm(slope.transpose(1, 2), q) * scale),
                (of_value, torch.bmm(probs.transpose(1, 2), up)),
            ):
                by_token = part.view(len(group.keys), sets, -1, part.shape[-1]).transpose(1, 2)
                total.index_add_(0, group.keys.flatten(), by_token.flatten(0, 1).to(wide))
        return (
            _scatter(of_query, tiles, query.shape[1], sets),
            of_key.to(key.dtype),
            of_value.to(value.dtype),
            None,
        )
