"""The Llama-family forward pass, ours: Llama, SmolLM, Mistral, Qwen2, Qwen3 and Gemma (the first) shapes.

A trunk is a stack of blocks that can be entered and left at any depth, so that branches which share its lower
blocks share their computation too. The stream between blocks is float32 even where weights and products are
bfloat16: that costs nothing measurable and takes a third off the rounding error of a log-probability. An adapter
is passed in, never installed: the same trunk serves policy, reference, value and reward at once. There is no
dropout unless a caller passes one (RL never does: Huang et al. 2024, detail on dropout).

Parity with transformers' own forward is tested for each family.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.models.adapter import Adapter
from plaudit.models.attention import Tiles, attend
from plaudit.models.dropout import Dropout, drop
from plaudit.models.fused import gated, rms_norm, rotate
from plaudit.models.rotary import SCALINGS, Scaling, frequencies
from plaudit.types import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
Gate = Literal["silu", "gelu_tanh"]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GATES: dict[str, Gate] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""What the gate of the MLP goes through, by transformers' name of it."""


class Unsupported(UserError):
    """A model of a family, or with a setting, that this forward does not have."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model of the family is made of; from the `config.json` of transformers.

    context: tokens a text, no more than the shortest window of attention. embed_scale: what embeddings are multiplied
    by. norm_offset: what is added to the norms' weights, which files and parameters hold without it (Gemma's are
    kept around 0).
    """

    family: str
    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    norm_eps: float
    rope_theta: float
    context: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    out_bias: bool = False
    mlp_bias: bool = False
    gate: Gate = "silu"
    embed_scale: float = 1.0
    norm_offset: float = 0.0
    rope_scaling: Scaling | None = None

    @classmethod
    def of(cls, config: dict[str, Any], where: str) -> Shape:
        """UserError for a config that is broken, Unsupported for what this forward does not have."""
        try:
            return cls._of(config, where)
        except KeyError as error:
            raise UserError(f"has no {error}", where=where) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"is not a model's config ({error})", where=where) from None

    @classmethod
    def _of(cls, config: dict[str, Any], where: str) -> Shape:
        family = str(config.get("model_type"))
        if family not in FAMILIES:
            raise Unsupported(
                f"model type {family!r} is not supported",
                where=where,
                fix=f"use one of {', '.join(FAMILIES)}",
            )
        gemma = family == "gemma"
        rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
        if config.get("original_max_position_embeddings"):
            rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        gate = config.get("hidden_act", "gelu_pytorch_tanh" if gemma else "silu")
        if gemma and gate == "gelu":  # what its first configs say and do not mean
            gate = "gelu_pytorch_tanh"
        attention_bias, mlp_bias = (bool(config.get(name)) for name in ("attention_bias", "mlp_bias"))
        for name, value, known in (
            ("rope_type", rope.get("rope_type", rope.get("type", "default")), ("default", *SCALINGS)),
            ("hidden_act", gate, tuple(GATES)),
            ("attention_bias", attention_bias, (False, family in ("llama", "qwen3", "gemma"))),
            ("mlp_bias", mlp_bias, (False, family == "llama")),
            ("use_bidirectional_attention", config.get("use_bidirectional_attention"), (None, False)),
            ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
            ("quantization_config", config.get("quantization_config"), (None,)),
        ):
            if value not in known:
                raise Unsupported(f"{name} {value!r} is not supported", where=where, fix="use another model")
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise ValueError(f"{heads} heads do not share num_key_value_heads {kv_heads}")
        longest = int(config.get("max_position_embeddings", 8192 if gemma else 2048))
        return cls(
            family=family,
            vocab=int(config["vocab_size"]),
            width=width,
            depth=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=kv_heads,
            head_width=int(config.get("head_dim") or (256 if gemma else width // heads)),
            mlp_width=int(config["intermediate_size"]),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            context=min(longest, _window(family, config) or longest),
            tied=bool(config.get("tie_word_embeddings", gemma)),
            qkv_bias=family == "qwen2" or attention_bias,
            qk_norm=family == "qwen3",
            out_bias=attention_bias,
            mlp_bias=mlp_bias,
            gate=GATES[gate],
            embed_scale=width**0.5 if gemma else 1.0,
            norm_offset=1.0 if gemma else 0.0,
            rope_scaling=Scaling.of(rope, longest),
        )


def _window(family: str, config: dict[str, Any]) -> int | None:
    """How many tokens back a token sees, itself counted, where that is limited: within a text no longer, a window
    changes nothing."""
    limited = family == "mistral" or (family.startswith("qwen") and config.get("use_sliding_window", False))
    window = config.get("sliding_window", 4096) if limited else None  # transformers' default without the key
    if window is not None and int(window) < 1:
        raise ValueError(f"sliding_window is {window}")
    return None if window is None else int(window)


@dataclass(frozen=True, slots=True)
class Context:
    """What every block of one forward pass shares: rotary tables [R, S, 1, head_width] in the dtype of products, and
    who sees whom.

    mask: [R, 1, S, K] bool, True where query s may look at key k; or tiles: who sees whom in rows whose tokens stand
    one after the other, R = 1 and S = N, without padding. dropout: with an adapter, of what each of its
    updates reads (as peft has it); without one, of what attention and MLP add to the stream (Vaswani et al. 2017,
    section 5.4).
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | Tiles
    dropout: Dropout | None = None


class Block(nn.Module):
    """Attention and gated MLP, each after an RMS norm, each added to the stream."""

    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        self.shape, self.index = shape, index
        query, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        sizes = {
            "q_proj": (query, shape.width),
            "k_proj": (kv, shape.width),
            "v_proj": (kv, shape.width),
            "o_proj": (shape.width, query),
            "gate_proj": (shape.mlp_width, shape.width),
            "up_proj": (shape.mlp_width, shape.width),
            "down_proj": (shape.width, shape.mlp_width),
        }
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(size)) for name, size in sizes.items()}
        )
        biased = LINEARS[:3] * shape.qkv_bias + LINEARS[3:4] * shape.out_bias + LINEARS[4:] * shape.mlp_bias
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.empty(sizes[name][0])) for name in biased})
        norms = {"input_layernorm": shape.width, "post_attention_layernorm": shape.width}
        if shape.qk_norm:
            norms |= {"q_norm": shape.head_width, "k_norm": shape.head_width}
        self.norms = nn.ParameterDict({name: nn.Parameter(torch.ones(size)) for name, size in norms.items()})

    def forward(self, stream: Tensor, context: Context, adapter: Adapter | None) -> Tensor:
        """[R, S, width] -> [R, S, width]."""
        whole = context.dropout if adapter is None else None
        dtype = context.cos.dtype
        attended = self._attend(self._norm("input_layernorm", stream, dtype), context, adapter)
        stream = stream + drop(attended, whole, self.index, "attention")
        x = self._norm("post_attention_layernorm", stream, dtype)
        gate, up = (self._linear(name, x, context, adapter) for name in ("gate_proj", "up_proj"))
        silu = self.shape.gate == "silu"
        inner = gated(gate, up) if silu else F.gelu(gate, approximate="tanh") * up
        made = self._linear("down_proj", inner, context, adapter)
        return stream + drop(made, whole, self.index, "mlp")

    def _attend(self, x: Tensor, context: Context, adapter: Adapter | None) -> Tensor:
        rows, columns, _ = x.shape
        shape = self.shape

        def heads(name: str) -> Tensor:
            return self._linear(name, x, context, adapter).view(rows, columns, -1, shape.head_width)

        query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
        if shape.qk_norm:
            query, key = self._norm("q_norm", query, x.dtype), self._norm("k_norm", key, x.dtype)
        query, key = (rotate(t, context.cos, context.sin) for t in (query, key))
        if isinstance(context.mask, Tiles):
            out = attend(query[0], key[0], value[0], context.mask)
            return self._linear("o_proj", out.view(1, columns, -1), context, adapter)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        key, value = (t.repeat_interleave(shape.heads // shape.kv_heads, dim=1) for t in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=context.mask).transpose(1, 2)
        return self._linear("o_proj", out.reshape(rows, columns, -1), context, adapter)

    def _linear(self, name: str, x: Tensor, context: Context, adapter: Adapter | None) -> Tensor:
        bias = self.biases[name].to(x.dtype) if name in self.biases else None
        y = F.linear(x, self.weights[name].to(x.dtype), bias)
        if adapter is not None and adapter.covers(self.index, name):
            y = y + adapter.delta(self.index, name, drop(x, context.dropout, self.index, name))
        return y

    def _norm(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        scale = norm_scale(self.norms[name], self.shape, x.dtype)
        return rms_norm(x, scale, self.shape.norm_eps, dtype)


class Llama(nn.Module):
    """Embedding, blocks, final norm and output layer.

    products: the dtype that matrices are multiplied in, where it is narrower than the weights' own: a trunk that is
    trained whole keeps its weights in float32, since a bfloat16 weight swallows small steps.
    """

    def __init__(self, shape: Shape, products: torch.dtype | None = None) -> None:
        super().__init__()
        self.shape, self.products = shape, products
        self.embedding = nn.Parameter(torch.empty(shape.vocab, shape.width))
        self.blocks = nn.ModuleList(Block(shape, index) for index in range(shape.depth))
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.output = None if shape.tied else nn.Parameter(torch.empty(shape.vocab, shape.width))

    def stack(self) -> list[Block]:
        """The blocks, bottom first."""
        return [cast(Block, block) for block in self.blocks]

    @property
    def output_weight(self) -> Tensor:
        """[vocab, width]; the embedding itself where the two are tied."""
        return self.embedding if self.output is None else self.output

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its products."""
        return self.products or self.embedding.dtype

    @property
    def wide(self) -> torch.dtype:
        """The stream's dtype: float32, or wider if the weights are."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def fingerprint(self) -> str:
        """Sixteen digits that tell this trunk from another of its shape, and are the same at every precision that it
        may be read in: of its norms and the first row of each matrix, as bfloat16."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.named_parameters()):
            row = (weight[0] if weight.ndim == 2 else weight).detach().to("cpu", torch.bfloat16)
            digest.update(name.encode() + row.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def context(self, positions: Tensor, mask: Tensor | Tiles) -> Context:
        """Rotary tables for positions [R, S], and a mask [R, S, K] (True: may look) or tiles of these rows."""
        shape = self.shape
        if isinstance(mask, Tiles):
            positions = mask.flatten(positions)
        else:
            mask = mask[:, None]
        frequency = frequencies(shape.head_width, shape.rope_theta, shape.rope_scaling, positions.device)
        angle = positions[..., None].float() * frequency
        angle = torch.cat([angle, angle], dim=-1)[:, :, None]
        cos, sin = angle.cos(), angle.sin()
        if shape.rope_scaling is not None:
            cos, sin = cos * shape.rope_scaling.attention, sin * shape.rope_scaling.attention
        return Context(cos.to(self.dtype), sin.to(self.dtype), mask)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [R, S] -> stream [R, S, width]."""
        rows = F.embedding(ids, self.embedding)
        if self.shape.embed_scale != 1:  # rounded as the weights are, and multiplied so, as Gemma was trained
            rows = rows * torch.tensor(self.shape.embed_scale, dtype=self.dtype)
        return rows.to(self.wide)

    def run(
        self,
        stream: Tensor,
        context: Context,
        adapter: Adapter | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """The stream [R, S, width] through blocks start to stop (exclusive; None: all that remain)."""
        tiles = context.mask if isinstance(context.mask, Tiles) else None
        rows = len(stream)
        if tiles is not None:
            stream = tiles.flatten(stream)
        for block in self.stack()[start:stop]:
            stream = block(stream, context, adapter)
        return stream if tiles is None else tiles.unflatten(stream, rows)

    def finish(self, stream: Tensor) -> Tensor:
        """The final norm: what heads and the output layer read."""
        scale = norm_scale(self.norm, self.shape, stream.dtype)
        return rms_norm(stream, scale, self.shape.norm_eps, stream.dtype)


def norm_scale(weight: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """What an RMS norm multiplies by: its weight, plus the family's offset, added in the dtype of what it scales."""
    return weight.to(dtype) + shape.norm_offset if shape.norm_offset else weight.to(dtype)
