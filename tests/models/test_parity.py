"""Our forward pass beside transformers' own, family by family, and what loading refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import SIZES, VARIANTS, called, make
from plaudit.data.collate import pack
from plaudit.models import tiny
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.llama import Shape
from plaudit.models.load import export, find_model, load_model, read_config
from plaudit.models.weights import read_safetensors, read_sharded
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from plaudit.types import UserError
from tiny_models import exact_norm, random_adapter, transformers_model


@pytest.fixture(scope="module", params=VARIANTS, ids=called)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, changes = request.param
    return make(family, tmp_path_factory.mktemp(family) / "model", **changes)


IDS = torch.randint(0, 714, (2, 40), generator=torch.Generator().manual_seed(3))


def beside(directory: Path, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of tokens 2 to 40 of two texts: ours, and transformers'."""
    model = load_model(str(directory), dtype)
    rows = IDS.tolist()
    packed = pack([row[:1] for row in rows], [row[1:] for row in rows])
    ours = token_logprobs(Branch(model.trunk), packed).logprobs
    with torch.no_grad():
        logits = transformers_model(directory, dtype)(IDS).logits.to(dtype)
    theirs = torch.log_softmax(logits, -1)[:, :-1].gather(2, IDS[:, 1:, None])[:, :, 0]
    return ours, theirs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_logprobs_equal_transformers(made: Path, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = beside(made, dtype)
    assert ours.dtype == dtype
    assert float((ours - theirs).abs().max()) < tolerance
    assert float(theirs.std()) > 0.3, "logits too flat to tell anything"


def test_greedy_tokens_are_what_transformers_generates(made: Path) -> None:
    """From our cache, in one left-padded batch, against generate one by one; in float32, as models are sampled."""
    theirs, model = transformers_model(made, torch.float32), load_model(str(made), torch.float32)
    prompts, params = [IDS[0, :20].tolist(), IDS[1, :7].tolist()], SamplingParams(15, 0.0, ignore_eos=True)
    engine = LocalEngine(model.trunk, model.tokenizer)
    drawn = sorted(engine.sample(prompts, 1, params, (0,)), key=lambda sample: sample.prompt)
    for prompt, sample in zip(prompts, drawn, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=15,
            min_new_tokens=15,
            do_sample=False,
        )
        assert list(sample.completion_ids) == out[0, len(prompt) :].tolist()
    assert len({token for sample in drawn for token in sample.completion_ids}) > 1


def test_an_export_is_the_same_bits_and_transformers_model(made: Path, tmp_path: Path) -> None:
    """What was read and not changed is written as it was, Gemma's norms too; with an adapter it is our model."""
    model = load_model(str(made), torch.float32)
    export(model, tmp_path / "same", None, model.trunk)
    source, written = (
        load_file(made / "model.safetensors"),
        load_file(tmp_path / "same" / "model.safetensors"),
    )
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)
    adapter = random_adapter(model.trunk)
    export(model, tmp_path / "adapted", adapter)
    rows = IDS.tolist()
    packed = pack([row[:1] for row in rows], [row[1:] for row in rows])
    with torch.no_grad():
        ours = token_logprobs(Branch(model.trunk, adapter), packed).logprobs
    _, theirs = beside(tmp_path / "adapted", torch.float32)
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float((ours - beside(made, torch.float32)[1]).abs().max()) > 0.05


def test_bfloat16_is_as_near_to_float32_as_transformers_is(made: Path) -> None:
    """Ours and transformers' bfloat16 beside transformers' float32; ours keeps its stream wide, and is no further."""
    ours, narrow = beside(made, torch.bfloat16)
    wide = beside(made, torch.float32)[1]
    near, far = ((x.float() - wide).abs().mean() for x in (ours, narrow))
    assert float(near) < 1.1 * float(far) + 0.01


def test_the_norm_put_in_transformers_place_is_its_own(made: Path) -> None:
    """In float64 the peer's norms are replaced, since they go through float32; in float32 the two agree."""
    model = transformers_model(made, torch.float32)
    norm = model.model.layers[0].input_layernorm
    x = torch.randn(5, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(exact_norm(norm)(x), norm(x), rtol=1e-6, atol=1e-6)


def test_parity_on_the_tiny_model_as_every_recipe_loads_it() -> None:
    ours, theirs = beside(find_model("tiny"), torch.float64)
    assert float((ours - theirs).abs().max()) < 1e-10


def test_bfloat16_stays_near_float32() -> None:
    """Weights and products are bfloat16, the stream is not: far below what a bfloat16 stream loses."""
    model, wide = load_model("tiny", torch.bfloat16), load_model("tiny", torch.float32)
    packed = pack([[5, 6]], [IDS[0].tolist()])
    near = token_logprobs(Branch(model.trunk), packed).logprobs
    assert near.dtype == torch.float32
    assert float((near - token_logprobs(Branch(wide.trunk), packed).logprobs).abs().mean()) < 0.01


def llama(**changes: Any) -> dict[str, Any]:
    return tiny.CONFIG | {"vocab_size": 714} | changes


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (llama(model_type="gpt2"), "gpt2"),
        ({"hidden_size": 64}, "None"),
        (llama(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        (llama(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_type"),
        (llama(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "rope_type"),
        (llama(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "factor"),
        (llama(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (llama(hidden_act="gelu"), "hidden_act"),
        (llama(model_type="mistral", attention_bias=True), "attention_bias"),
        (llama(model_type="qwen2", mlp_bias=True), "mlp_bias"),
        (llama(model_type="mistral", sliding_window=0), "sliding_window"),
        (llama(model_type="gemma", use_bidirectional_attention=True), "use_bidirectional_attention"),
        (llama(quantization_config={"quant_method": "fp8"}), "quantization_config"),
        ({k: v for k, v in llama().items() if k != "hidden_size"}, "hidden_size"),
        (llama(num_hidden_layers="many"), "many"),
        (llama(num_attention_heads=5), "num_key_value_heads"),
        (llama(rope_parameters=[1]), "not a model's config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "config",
)
def test_what_the_forward_lacks_is_refused(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        Shape.of(config, "a/config.json")
    assert "a/config.json" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        llama(rope_scaling=None),
        llama(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        llama(model_type="mistral", sliding_window=None),
        llama(model_type="qwen2", use_sliding_window=False, sliding_window=32),
    ],
    ids=["no scaling", "default rope", "mistral without window", "qwen2 with its window off"],
)
def test_what_the_forward_has_is_taken(config: dict[str, Any]) -> None:
    shape = Shape.of(config, "")
    assert (shape.rope_theta, shape.context) == (10000.0, tiny.CONFIG["max_position_embeddings"])


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (llama(model_type="mistral", sliding_window=32), 32),
        (llama(model_type="mistral", max_position_embeddings=32768), 4096),  # transformers' default window
        (llama(model_type="qwen2", use_sliding_window=True, sliding_window=32), 32),
        (llama(model_type="qwen3", use_sliding_window=True, sliding_window=512), 256),
    ],
    ids=["mistral", "mistral by default", "qwen2", "a window wider than the context"],
)
def test_a_text_is_no_longer_than_the_window_of_attention(config: dict[str, Any], context: int) -> None:
    """Up to there a window changes nothing (the families above stand at exactly theirs)."""
    assert Shape.of(config, "").context == context


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_model("tiny"), tmp_path / "model"))


def test_shards_load_as_the_whole(copy: Path) -> None:
    whole = load_file(copy / "model.safetensors")
    names = sorted(whole)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for shard, held in shards.items():
        save_file({name: whole[name] for name in held}, copy / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_sharded(copy)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert torch.equal(
        load_model(str(copy), torch.float32).trunk.norm, load_model("tiny", torch.float32).trunk.norm
    )
    (copy / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2\.safetensors: is missing"):
        read_sharded(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_refused(copy: Path, text: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="index"):
        read_sharded(copy)


def test_a_shard_outside_the_directory_is_refused(copy: Path) -> None:
    shutil.move(copy / "model.safetensors", copy.parent / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        read_sharded(copy)


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        key = f"model.layers.2.self_attn.{name}.weight"
        del tensors[key]
        if tensor is not None:
            tensors[key] = tensor
    save_file(tensors, directory / "model.safetensors")


def test_a_missing_tensor_is_named(copy: Path) -> None:
    rewrite(copy, k_proj=None)
    with pytest.raises(UserError, match=r"layers.2.self_attn.k_proj.weight is missing, not \(32, 64\)"):
        load_model(str(copy), torch.float32)


def test_a_transposed_tensor_is_named(copy: Path) -> None:
    rewrite(copy, v_proj=torch.zeros(64, 32))
    with pytest.raises(UserError, match=r"v_proj.weight is of shape \(64, 32\), not \(32, 64\)"):
        load_model(str(copy), torch.float32)


@pytest.mark.parametrize("keep", [0, 4, 200, 50_000])
def test_a_cut_file_is_refused(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(str(copy), torch.float32)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused_and_never_opened(copy: Path, name: str) -> None:
    ran = copy / "ran"
    (copy / "model.safetensors").rename(copy / name)
    (copy / name).write_bytes(f"cposix\nsystem\n(Vtouch {ran}\ntR.".encode())
    with pytest.raises(UserError, match="pickled"):
        load_model(str(copy), torch.float32)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{"), ("config.json", "[1]"), ("tokenizer.json", "{}")]
)
def test_broken_json_is_refused(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=str(copy)):
        load_model(str(copy), torch.float32)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "nowhere", "a/b/c"])
def test_a_model_that_is_not_there_is_refused_without_the_network(name: str) -> None:
    with pytest.raises(UserError, match="no such model"):
        find_model(name)


def test_a_directory_without_a_model_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a model directory"):
        find_model(str(tmp_path / "file"))


def test_tensors_are_copied_out_of_the_file(copy: Path) -> None:
    """A file's map lies wherever its header ends; memory of torch's own is aligned, so bits do not vary."""
    path = copy / "model.safetensors"
    names = sorted(load_file(path))
    for padding in range(8):  # the header's length moves the data
        save_file(load_file(path), copy / "moved.safetensors", metadata={"pad": "x" * padding})
        found = read_safetensors(copy / "moved.safetensors")
        assert all(found[name].data_ptr() % 64 == 0 for name in names)
    before = {name: tensor.clone() for name, tensor in found.items()}
    with (copy / "moved.safetensors").open("r+b") as file:  # the same file, other bytes
        file.seek(-4096, 2)
        file.write(b"\x7f" * 4096)
    assert all(torch.equal(found[name], before[name]) for name in names)
    tensors = [found[name] for name in names]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_a_loaded_trunk_is_frozen() -> None:
    assert not any(p.requires_grad for p in load_model("tiny", torch.float32).trunk.parameters())
