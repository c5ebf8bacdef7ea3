"""Adapters: what they add, what is written of them, and that peft and transformers read the same model out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit.data.collate import pack
from plaudit.models.adapter import Adapter, load_adapter, save_adapter
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.llama import LINEARS, Llama
from plaudit.models.load import (
    Model,
    export,
    linear_sizes,
    load_model,
    make_adapter,
    open_adapter,
    trunk_names,
)
from plaudit.types import UserError
from tiny_models import random_adapter, transformers_model

IDS = torch.randint(0, 714, (2, 24), generator=torch.Generator().manual_seed(5))
PACKED = pack([row[:1] for row in IDS.tolist()], [row[1:] for row in IDS.tolist()])
PEFT_IS_OLDER = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny", torch.float64)


def ours(trunk: Llama, adapter: Adapter | None) -> Tensor:
    with torch.no_grad():
        return token_logprobs(Branch(trunk, adapter), PACKED).logprobs


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        logprobs = torch.log_softmax(model(IDS).logits.double(), -1)
    return logprobs[:, :-1].gather(2, IDS[:, 1:, None])[:, :, 0]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def test_a_fresh_adapter_changes_nothing(model: Model) -> None:
    fresh = make_adapter(model.trunk, rank=4, alpha=8.0, blocks=0, seed=0)
    assert torch.equal(ours(model.trunk, fresh), ours(model.trunk, None))
    assert gap(ours(model.trunk, random_adapter(model.trunk)), ours(model.trunk, None)) > 0.05


def test_a_fresh_adapter_is_drawn_as_in_peft(model: Model) -> None:
    """A uniform within 1/sqrt(in): as wide as that and no wider; its seed decides it."""
    a, b, c = (make_adapter(model.trunk, rank=64, alpha=8.0, blocks=1, seed=s) for s in (0, 0, 1))
    for name, factor in a.factors.items():
        assert torch.equal(factor, b.factors[name])
        if name.endswith("_A"):
            assert not torch.equal(factor, c.factors[name])
            bound = factor.shape[1] ** -0.5
            drawn = factor.detach()
            assert 0.98 * bound < float(drawn.abs().max()) <= bound
            assert abs(float(drawn.var()) / (bound**2 / 3) - 1) < 0.1
        else:
            assert not bool(factor.any())


def test_a_rank_above_the_width_is_refused_before_anything_is_made(model: Model) -> None:
    width = model.trunk.shape.width
    assert make_adapter(model.trunk, rank=width, alpha=1.0, blocks=1, seed=0).rank == width
    for rank in (width + 1, 10**30):
        with pytest.raises(UserError, match=f"^adapter: rank {rank} is above the model's width, {width}; "):
            make_adapter(model.trunk, rank=rank, alpha=1.0, blocks=1, seed=0)


@pytest.mark.parametrize(("blocks", "first"), [(0, 0), (1, 3), (3, 1), (4, 0), (9, 0)])
def test_only_the_top_blocks_are_adapted(model: Model, blocks: int, first: int) -> None:
    adapter = random_adapter(model.trunk, blocks=blocks)
    assert adapter.first == first
    assert [adapter.covers(block, "q_proj") for block in range(4)] == [block >= first for block in range(4)]
    assert len(adapter.factors) == (4 - first) * len(LINEARS) * 2


def copied(trunk: Llama) -> Llama:
    other = Llama(trunk.shape).to(trunk.dtype)
    other.load_state_dict(trunk.state_dict())
    return other


def merged(trunk: Llama, adapter: Adapter) -> Llama:
    """A trunk with weight + alpha / rank B A in each adapted place, by hand."""
    whole = copied(trunk)
    with torch.no_grad():
        for block in range(adapter.first, adapter.depth):
            for name in adapter.targets:
                a, b = adapter.factors[f"{block}_{name}_A"], adapter.factors[f"{block}_{name}_B"]
                whole.stack()[block].weights[name].add_(adapter.alpha / adapter.rank * b @ a)
    return whole


@pytest.mark.parametrize("blocks", [0, 2])
def test_merged_equals_unmerged(model: Model, blocks: int) -> None:
    adapter = random_adapter(model.trunk, rank=3, blocks=blocks)
    adapter.alpha = 5.0
    whole = merged(model.trunk, adapter)
    assert gap(ours(whole, None), ours(model.trunk, adapter)) < 1e-12
    for block in range(adapter.first, 4):
        for name in LINEARS:
            weight = model.trunk.stack()[block].weights[name]
            assert gap(adapter.merged(block, name, weight), whole.stack()[block].weights[name]) < 1e-15


def test_two_adapters_on_one_trunk_do_not_touch_each_other(model: Model) -> None:
    one, two = random_adapter(model.trunk, seed=1), random_adapter(model.trunk, seed=2)
    alone = ours(model.trunk, one)
    before = {name: tensor.clone() for name, tensor in model.trunk.state_dict().items()}
    ours(model.trunk, two)
    with torch.no_grad():
        for factor in two.parameters():
            factor.normal_()
    torch.autograd.backward(token_logprobs(Branch(model.trunk, two), PACKED).logprobs.sum())
    assert torch.equal(ours(model.trunk, one), alone)
    assert all(factor.grad is None for factor in one.parameters())
    assert all(factor.grad is not None for factor in two.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trunk.state_dict().items())
    assert all(p.grad is None for p in model.trunk.parameters())


def test_an_export_reloaded_by_transformers_is_our_model(model: Model, tmp_path: Path) -> None:
    """The file keeps the source's float32, which is what the merge is rounded to."""
    adapter = random_adapter(model.trunk, blocks=3)
    export(model, tmp_path / "out", adapter)
    again = load_model(str(tmp_path / "out"), torch.float64)
    assert gap(ours(again.trunk, None), ours(model.trunk, adapter)) < 1e-6
    assert gap(ours(again.trunk, None), theirs(transformers_model(tmp_path / "out", torch.float64))) < 1e-10
    assert gap(ours(again.trunk, None), ours(model.trunk, None)) > 0.05
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.tokenizer.eos_ids == model.tokenizer.eos_ids
    source = load_file(model.directory / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in written.items()} == {
        k: (v.dtype, v.shape) for k, v in source.items()
    }


def test_an_export_merges_into_the_file_not_into_a_narrower_trunk(tmp_path: Path) -> None:
    narrow = load_model("tiny", torch.bfloat16)
    adapter = make_adapter(narrow.trunk, rank=2, alpha=4.0, blocks=1, seed=0)
    export(narrow, tmp_path / "out", adapter)
    source = load_file(narrow.directory / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], source[name]) for name in source)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_an_export_of_a_trained_trunk_keeps_the_sources_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_model("tiny", dtype)
    trained = copied(model.trunk)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    export(model, tmp_path / "out", None, trained)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == trunk_names(trained).keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    for name, parameter in trunk_names(trained).items():
        assert torch.equal(written[name], parameter.float())


@PEFT_IS_OLDER
def test_peft_reads_our_files(model: Model, tmp_path: Path) -> None:
    import peft

    adapter = random_adapter(model.trunk, blocks=2, rank=3)
    save_adapter(adapter, tmp_path, base=str(model.directory))
    base = transformers_model(model.directory, torch.float64)
    # peft leaves what it adds in float32 unless the adapter's own dtype is kept
    wrapped = peft.PeftModel.from_pretrained(base, str(tmp_path), autocast_adapter_dtype=False).double()
    assert gap(theirs(wrapped.eval()), ours(model.trunk, adapter)) < 1e-10


@PEFT_IS_OLDER
def test_we_read_pefts_files(model: Model, tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(transformers_model(model.directory, torch.float64), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(str(tmp_path))
    adapter = load_adapter(tmp_path, linear_sizes(model.trunk), 4, torch.float64)
    assert adapter.targets == ("q_proj", "v_proj", "down_proj")
    assert gap(theirs(wrapped.double().eval()), ours(model.trunk, adapter)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    trunk = load_model("tiny", dtype).trunk
    adapter = random_adapter(trunk, blocks=3, rank=5)
    adapter.alpha = 7.5
    save_adapter(adapter, tmp_path, base="somewhere")
    again = load_adapter(tmp_path, linear_sizes(trunk), 4, dtype)
    assert (again.first, again.depth, again.rank, again.alpha, again.targets) == (1, 4, 5, 7.5, LINEARS)
    assert again.factors.keys() == adapter.factors.keys()
    assert all(torch.equal(again.factors[name], factor) for name, factor in adapter.factors.items())
    assert all(p.requires_grad for p in again.parameters()), "a loaded adapter can be trained on"


def test_an_adapter_is_of_its_trunk_at_any_precision_and_of_a_policy(tmp_path: Path) -> None:
    trunk = load_model("tiny", torch.float64).trunk
    save_adapter(random_adapter(trunk, blocks=1), tmp_path, base="here")
    about = {"base_model": "here", "trunk": trunk.fingerprint()}
    (tmp_path / "policy.json").write_text(json.dumps(about))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        open_adapter(tmp_path, load_model("tiny", dtype).trunk)
    other = load_model("tiny", torch.float64).trunk
    with torch.no_grad():
        other.stack()[3].weights["up_proj"].mul_(1.1)
    with pytest.raises(UserError, match="was trained on another model; use here"):
        open_adapter(tmp_path, other)
    (tmp_path / "policy.json").unlink()  # peft's own files say nothing of it
    open_adapter(tmp_path, other)
    (tmp_path / "reward_model.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"is no policy's adapter: reward_model\.json stands beside it; name the"
    ):
        open_adapter(tmp_path, trunk)


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    save_adapter(random_adapter(model.trunk, blocks=2), tmp_path, base="somewhere")
    return tmp_path


def change(directory: Path, **settings: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": 7}, "lora_A.weight of shape"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": "all-linear"}, "does not have"),
        ({"target_modules": None}, "config"),
        ({"layers_to_transform": [0, 2]}, r"\[0, 2\]"),
        ({"layers_to_transform": [2, 3, 4]}, r"\[2, 3, 4\]"),
        ({"layers_to_transform": None}, r"layers.0.*lora_A"),
        ({"r": "many"}, "config"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_refused(
    model: Model, saved: Path, settings: dict[str, Any], named: str
) -> None:
    change(saved, **settings)
    with pytest.raises(UserError, match=named):
        load_adapter(saved, linear_sizes(model.trunk), 4, torch.float64)


def test_wrong_shapes_and_missing_or_broken_files_are_refused(model: Model, saved: Path) -> None:
    sizes = linear_sizes(model.trunk)
    with pytest.raises(UserError, match="shape"):
        load_adapter(saved, sizes | {"k_proj": (48, 64)}, 4, torch.float64)
    with pytest.raises(UserError):  # a shallower trunk
        load_adapter(saved, sizes, 3, torch.float64)
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if "layers.3.mlp.up_proj" not in name}, path)
    with pytest.raises(UserError, match=r"layers.3.mlp.up_proj"):
        load_adapter(saved, sizes, 4, torch.float64)
    save_file(tensors | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, path)
    with pytest.raises(UserError, match="lm_head"):
        load_adapter(saved, sizes, 4, torch.float64)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        load_adapter(saved, sizes, 4, torch.float64)
    (saved / "adapter_config.json").write_text("[")
    with pytest.raises(UserError, match="config"):
        load_adapter(saved, sizes, 4, torch.float64)
    (saved / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="config"):
        load_adapter(saved, sizes, 4, torch.float64)
    (saved / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="config"):
        load_adapter(saved, sizes, 4, torch.float64)
