"""The forward pass that sampling needs: whole prompts once, then one new token a row, without gradients.

The trunk's weights are laid out anew, once: the maps that read the same input stand in one matrix, packed in the
layout that the CPU's products read (oneDNN), in the dtype that the run computes in. Keys and values stand in a cache
that rows enter and leave.

What it computes is `plaudit.models.llama`'s, and a test holds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.models.adapter import Adapter
from plaudit.models.llama import Block, Llama, Shape, norm_scale
from plaudit.phases import kind

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Maps of a block that read the same input and are one product here."""
COLUMNS = 32
"""The cache grows by so many columns at a time."""
GUIDES = 256
"""How many words, the first and most frequent of a vocabulary, say about how large a row's logits are."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(block, queries [T, heads, head_width], keys and values [T, kv_heads, head_width]) -> [T, heads * head_width]."""


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype on this machine."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(16, 16, dtype=dtype), 32)
        torch.ops.mkldnn._linear_pointwise(torch.ones(2, 16, dtype=dtype), weight, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Linear:
    """x [T, in] -> [T, out]; the weight is packed where the machine has a layout of its own for it."""

    weight: Tensor
    bias: Tensor | None
    packed: bool

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        weight = weight.detach().to(dtype).contiguous()
        bias = None if bias is None else bias.detach().to(dtype)
        if weight.device.type == "cpu" and packs(dtype):
            return cls(torch.ops.mkldnn._reorder_linear_weight(weight, 32), bias, True)
        return cls(weight, bias, False)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Update:
    """The low-rank updates of maps that stand together: into [ranks, in], out [out, ranks], block by block."""

    into: Tensor
    out: Tensor

    @classmethod
    def of(
        cls, adapter: Adapter, index: int, names: Sequence[str], block: Block, dtype: torch.dtype
    ) -> Update | None:
        """None where the adapter has none of these maps."""
        if not any(adapter.covers(index, name) for name in names):
            return None
        rows = [len(block.weights[name]) for name in names]
        own = [name for name in names if adapter.covers(index, name)]
        into = torch.cat([adapter.factors[f"{index}_{name}_A"].detach() for name in own])
        out = into.new_zeros(sum(rows), len(into))
        row = column = 0
        for name, count in zip(names, rows, strict=True):
            if name in own:
                b = adapter.factors[f"{index}_{name}_B"].detach()
                out[row : row + count, column : column + b.shape[1]] = b
                column += b.shape[1]
            row += count
        return cls((into * (adapter.alpha / adapter.rank)).to(dtype), out.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.into), self.out)


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: its four products with their updates, and its norms in the stream's dtype."""

    maps: tuple[Linear, ...]
    updates: tuple[Update | None, ...]
    norms: dict[str, Tensor]

    def product(self, place: int, x: Tensor) -> Tensor:
        """The place-th of TOGETHER."""
        y, update = self.maps[place](x), self.updates[place]
        return y if update is None else y.add_(update(x))


@dataclass(frozen=True, slots=True)
class Output:
    """hidden [B, width] -> logits [B, V] in float32 or wider, less a number of each row's own, which no softmax sees.

    A bfloat16 logit near 40 is rounded to the nearest 1/4, one near 0 hardly. So where products are bfloat16 the
    largest logit of a few words is taken first, in float32, and stands as a column of its own in the product, which
    takes it away before it rounds: what can be drawn is then near 0, at half the price of a float32 product.
    """

    product: Linear
    guides: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> Output:
        weight = weight.detach().to(dtype)
        if torch.finfo(dtype).bits >= 32:
            return cls(Linear.of(weight, None, dtype), None, dtype)
        column = weight.new_zeros(weight.shape[0], 16)  # as many as oneDNN likes best; one is read
        column[:, 0] = 1.0
        return cls(Linear.of(torch.cat([weight, column], dim=1), None, dtype), weight[:GUIDES].float(), dtype)

    @kind("output layer")
    def __call__(self, hidden: Tensor) -> Tensor:
        if self.guides is None:
            return self.product(hidden)
        narrow = hidden.to(self.dtype)
        column = narrow.new_zeros(len(narrow), 16)
        column[:, 0] = -(narrow.float() @ self.guides.T).amax(-1)
        return self.product(torch.cat([narrow, column], dim=1)).float()


@dataclass(slots=True)
class Cache:
    """Keys and values of the rows that are drawn, one pair a block, each [slots, kv_heads, columns, head_width].

    A row's own columns are the first `length` of it; what stands beyond them is never read.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(
        cls, shape: Shape, slots: int, columns: int, *, dtype: torch.dtype, device: torch.device
    ) -> Cache:
        size = (slots, shape.kv_heads, columns, shape.head_width)
        make = [torch.zeros(size, dtype=dtype, device=device) for _ in range(2 * shape.depth)]
        return cls(make[: shape.depth], make[shape.depth :])

    @property
    def columns(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, columns: int, rows: int, slots: int = 0) -> None:
        """Room for so many columns, and for so many slots; what the first `rows` rows hold is kept."""
        held, _, before, _ = self.keys[0].shape
        if columns <= before and slots <= held:
            return
        columns = max(before, columns + -columns % COLUMNS)
        for tensors in (self.keys, self.values):
            for index, old in enumerate(tensors):
                _, heads, _, width = old.shape
                tensors[index] = old.new_zeros(max(held, slots), heads, columns, width)
                tensors[index][:rows, :, :before] = old[:rows]

    def narrow(self, columns: int, rows: int) -> None:
        """Room for no more than so many columns and rows, whose contents are kept."""
        columns += -columns % COLUMNS
        for tensors in (self.keys, self.values):
            for index, old in enumerate(tensors):
                tensors[index] = old[:rows, :, :columns].clone()

    def put(self, start: int, other: Cache, rows: Tensor) -> None:
        """These rows of another cache, which is no wider, from slot `start` on."""
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[start : start + len(rows), :, : theirs.shape[2]] = theirs[rows]

    def move(self, source: Tensor, target: Tensor) -> None:
        """The rows of `source` to where `target` says."""
        for tensor in self.keys + self.values:
            tensor[target] = tensor[source]


@dataclass(slots=True)
class Decoder:
    """A trunk laid out for sampling. dtype: of products and cache; the stream is float32, or wider."""

    shape: Shape
    dtype: torch.dtype
    embed: Callable[[Tensor], Tensor]
    layers: list[Layer]
    norm: Tensor
    output: Output
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, trunk: Llama, dtype: torch.dtype | None = None) -> Decoder:
        """dtype: the trunk's own where it is None; a float32 trunk is computed in bfloat16 where that is asked."""
        dtype = dtype or trunk.dtype
        wide, shape = torch.promote_types(dtype, torch.float32), trunk.shape
        layers = list[Layer]()
        for block in trunk.stack():
            maps = list[Linear]()
            for names in TOGETHER:
                weight = torch.cat([block.weights[name].detach() for name in names])
                biases = [block.biases[name].detach() for name in names if name in block.biases]
                maps.append(Linear.of(weight, torch.cat(biases) if biases else None, dtype))
            norms = {name: norm_scale(weight.detach(), shape, wide) for name, weight in block.norms.items()}
            layers.append(Layer(tuple(maps), (None,) * len(TOGETHER), norms))
        # One row a position: the trunk's own tables, the sine's first half negated, since a rotated head is
        # x cos + (x with its halves exchanged) sin.
        places = torch.arange(shape.context, device=trunk.device)[None]
        tables = trunk.context(places, torch.ones(1, 1, 1, dtype=torch.bool, device=trunk.device))
        cos, sin = tables.cos[0].to(dtype), tables.sin[0].to(dtype).clone()
        sin[..., : shape.head_width // 2].neg_()
        return cls(
            shape=shape,
            dtype=dtype,
            embed=trunk.embed,
            layers=layers,
            norm=norm_scale(trunk.norm.detach(), shape, wide),
            output=Output.of(trunk.output_weight, dtype),
            cos=cos,
            sin=sin,
        )

    def adapted(self, adapter: Adapter | None, trunk: Llama) -> Decoder:
        """The same weights with this adapter's updates, as they are now, or with none."""
        layers = list[Layer]()
        for index, (layer, block) in enumerate(zip(self.layers, trunk.stack(), strict=True)):
            updates: tuple[Update | None, ...] = (None,) * len(TOGETHER)
            if adapter is not None:
                updates = tuple(Update.of(adapter, index, names, block, self.dtype) for names in TOGETHER)
            layers.append(Layer(layer.maps, updates, layer.norms))
        return Decoder(self.shape, self.dtype, self.embed, layers, self.norm, self.output, self.cos, self.sin)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
        """Whole prompts: their keys and values, and the state after each one's last token [P, width].

        Products are computed on real tokens alone; attention on rows padded at the right, where a causal query
        never looks.
        """
        device, shape = self.norm.device, self.shape
        count, width = len(prompts), max(map(len, prompts))
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        position = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(device)
        row = torch.repeat_interleave(torch.arange(count), torch.tensor([*map(len, prompts)])).to(device)
        place = row * width + position
        even = len(ids) == count * width
        found = Cache.empty(shape, 0, 0, dtype=self.dtype, device=device)

        def padded(x: Tensor) -> Tensor:
            """[T, heads, head_width] -> [P, heads, width, head_width]"""
            if not even:
                x = x.new_zeros(count * width, *x.shape[1:]).index_copy(0, place, x)
            return x.view(count, width, *x.shape[1:]).transpose(1, 2)

        @kind("attention")
        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = padded(key).contiguous(), padded(value).contiguous()
            found.keys[index], found.values[index] = keys, values
            group = shape.heads // shape.kv_heads
            keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
            out = F.scaled_dot_product_attention(padded(query), keys, values, is_causal=True)
            out = out.transpose(1, 2).reshape(count * width, -1)
            return out if even else out[place]

        hidden = self._run(ids, position, attend)
        last = torch.tensor([*map(len, prompts)], device=device).cumsum(0) - 1
        return found, hidden[last]

    def step(self, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        """One new token a row, tokens [B], where `lengths` [B] stand before it: the states after them [B, width].

        The rows are the cache's first B; their keys and values are written at column `lengths`.
        """
        count, shape = len(tokens), self.shape
        rows = torch.arange(count, device=tokens.device)
        beyond = torch.arange(cache.columns, device=tokens.device) > lengths[:, None]
        bias = torch.zeros(beyond.shape, dtype=self.dtype, device=tokens.device)
        bias = bias.masked_fill_(beyond, -torch.inf)[:, None, None]
        group, scale = shape.heads // shape.kv_heads, shape.head_width**-0.5

        @kind("attention")
        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.keys[index], cache.values[index]
            keys[rows, :, lengths] = key
            values[rows, :, lengths] = value
            # The query heads that share a key head are the rows of one small product.
            query = (query * scale).view(count, shape.kv_heads, group, shape.head_width)
            scores = (query @ keys[:count].transpose(2, 3)).add_(bias)
            return (torch.softmax(scores, -1) @ values[:count]).view(count, -1)

        return self._run(tokens, lengths, attend)

    def _run(self, ids: Tensor, position: Tensor, attend: Attend) -> Tensor:
        """Tokens [T] at these positions through all blocks and the final norm: [T, width]."""
        shape = self.shape
        stream = self.embed(ids).to(self.norm.dtype)
        cos, sin = self.cos[position], self.sin[position]
        turned = shape.heads + shape.kv_heads
        for index, layer in enumerate(self.layers):
            x = self._norm(stream, layer.norms["input_layernorm"])
            heads = layer.product(0, x).view(len(ids), turned + shape.kv_heads, shape.head_width)
            query, key = heads[:, : shape.heads], heads[:, shape.heads : turned]
            if shape.qk_norm:
                query = self._norm(query, layer.norms["q_norm"])
                key = self._norm(key, layer.norms["k_norm"])
                query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            else:
                both = _rotate(heads[:, :turned], cos, sin)
                query, key = both[:, : shape.heads], both[:, shape.heads :]
            out = attend(index, query, key, heads[:, turned:])
            stream += layer.product(1, out)
            x = self._norm(stream, layer.norms["post_attention_layernorm"])
            gate, up = layer.product(2, x).chunk(2, dim=-1)
            inner = F.silu(gate) if shape.gate == "silu" else F.gelu(gate, approximate="tanh")
            stream += layer.product(3, inner.mul_(up))
        return F.rms_norm(stream, (shape.width,), self.norm, shape.norm_eps)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), self.shape.norm_eps).to(self.dtype)


@kind("rotary")
def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, head_width] by the tables [T, 1, head_width] of `Decoder`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
