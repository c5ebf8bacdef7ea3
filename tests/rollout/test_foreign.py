"""Models that go through transformers' own forward: greedy as it generates, drawn as its softmax says, however batched.

gpt2 has learned positions; gemma2 caps its logits and has windows; phi3 has one matrix for three; falcon_h1, jamba and
lfm2 have a state space or a convolution beside attention, mamba nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_local import chi_square

from plaudit.cli import main
from plaudit.models import tiny
from plaudit.models.foreign import Foreign, find_any, foreign_logprobs, load_any, load_foreign
from plaudit.models.llama import Unsupported
from plaudit.models.load import load_model
from plaudit.rollout.foreign import ForeignEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import UserError
from tiny_models import random_ids

SIZES: dict[str, Any] = {
    "vocab_size": 714,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "phi3": ("Phi3Config", {}),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "falcon_h1": (
        "FalconH1Config",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
    "jamba": (
        "JambaConfig",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 4,
            "expert_layer_offset": 3,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
        },
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
}
PROMPTS = random_ids(21, 5, 2, 14)
KEY = (5, "test", 0)


def make(kind: str, directory: Path) -> Path:
    """A random model that transformers made and saved, sure enough of itself, with the tiny model's tokenizer."""
    import transformers

    name, changes = KINDS[kind]
    config = getattr(transformers, name)(**SIZES | changes)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(str(directory))
    for path in tiny.make(directory.parent / "tokenizer").glob("tokenizer*"):
        shutil.copy(path, directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": 1}')
    return directory


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return load_foreign(str(make(request.param, tmp_path_factory.mktemp("made") / "model")), torch.float32)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("gpt2", tmp_path_factory.mktemp("made") / "model")


def drawn(engine: ForeignEngine, prompts: list[list[int]], n: int, params: SamplingParams) -> list[Sample]:
    return sorted(engine.sample(prompts, n, params, KEY), key=lambda s: (s.prompt, s.index))


def test_greedy_is_what_transformers_generates(model: Foreign) -> None:
    """Five prompts of several lengths together, against generate one by one."""
    samples = drawn(ForeignEngine(model), PROMPTS, 2, SamplingParams(20, 0.0, ignore_eos=True))
    assert len({len(p) for p in PROMPTS}) > 2
    for sample in samples:
        prompt = PROMPTS[sample.prompt]
        out = model.inner.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            min_new_tokens=20,
            do_sample=False,
            top_k=None,
        )
        assert list(sample.completion_ids) == out[0, len(prompt) :].tolist()
    assert len({s.completion_ids for s in samples}) > 1


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_whole_pass(model: Foreign, temperature: float) -> None:
    params = SamplingParams(10, temperature)
    gaps = []
    for sample in drawn(ForeignEngine(model), PROMPTS, 3, params):
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        with torch.no_grad():
            logits = model.inner(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / temperature
        exact = torch.log_softmax(logits, -1).gather(1, ids[0, len(sample.prompt_ids) :, None])[:, 0]
        gaps += (exact - torch.tensor(sample.logprobs)).abs().tolist()
        if temperature == 1:
            said = foreign_logprobs(model, sample.prompt_ids, sample.completion_ids)
            assert float((said - exact).abs().max()) < 1e-5
    assert max(gaps) < 1e-4


def test_draws_do_not_depend_on_the_batch(model: Foreign) -> None:
    params = SamplingParams(9)
    whole = drawn(ForeignEngine(model), PROMPTS, 4, params)
    assert len({s.completion_ids for s in whole}) == len(whole)
    for max_batch in (1, 3):
        part = drawn(ForeignEngine(model, max_batch=max_batch), PROMPTS, 4, params)
        assert [s.completion_ids for s in part] == [s.completion_ids for s in whole]
    beside = drawn(ForeignEngine(model), [PROMPTS[0], *random_ids(99, 3, 20, 30)], 4, params)
    assert [s.completion_ids for s in beside[:4]] == [s.completion_ids for s in whole[:4]]


def test_draws_follow_the_distribution(model: Foreign) -> None:
    """First tokens of 3,000 samples, and second tokens after the likeliest first, against the exact softmax."""
    engine = ForeignEngine(model, max_batch=1000)
    samples = drawn(engine, [PROMPTS[0]], 3000, SamplingParams(2, 0.4, ignore_eos=True))

    def exact(before: list[int]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            logits = model.inner(torch.tensor([before])).logits[0, -1].double() / 0.4
        logits[1] = -torch.inf
        return torch.softmax(logits, -1).numpy()

    first = Counter(s.completion_ids[0] for s in samples)
    assert chi_square(first, exact(PROMPTS[0]), 3000) > 1e-4
    assert chi_square(first, exact([*PROMPTS[0][:-1], 7]), 3000) < 1e-6, "another distribution is told apart"
    likeliest = first.most_common(1)[0][0]
    second = Counter(s.completion_ids[1] for s in samples if s.completion_ids[0] == likeliest)
    assert chi_square(second, exact([*PROMPTS[0], likeliest]), second.total()) > 1e-4


def test_end_of_text_stops(gpt2: Path) -> None:
    """Each of several ends does, and a row that has ended says nothing more."""
    model = load_foreign(str(gpt2), torch.float32)
    engine = ForeignEngine(model)
    free = drawn(engine, PROMPTS, 2, SamplingParams(12))
    model.tokenizer.eos_ids = (1, free[0].completion_ids[3], free[1].completion_ids[5])
    for before, sample in zip(free, drawn(engine, PROMPTS, 2, SamplingParams(12)), strict=True):
        ids = before.completion_ids
        ends = [t for t, token in enumerate(ids) if token in model.tokenizer.eos_ids]
        assert sample.completion_ids == (ids[: ends[0] + 1] if ends else ids)
        assert sample.finish_reason == ("stop" if ends else "length")
        assert len(sample.logprobs) == len(sample.completion_ids)
    for sample in drawn(engine, PROMPTS, 2, SamplingParams(12, ignore_eos=True)):
        assert len(sample.completion_ids) == 12
        assert not set(sample.completion_ids) & set(model.tokenizer.eos_ids)
    with pytest.raises(UserError, match=r"prompt 1: has 120 tokens; with 12 new ones the model takes 128"):
        engine.check([[5] * 120], SamplingParams(12))


def test_generate_and_evaluate_take_it_and_say_so(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line on stderr; an adapter is refused, and so is training."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "how are you"}\n{"prompt": "a cat"}\n')
    asked = ["generate", str(gpt2), "--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "8"]
    asked += ["--precision", "float32"]
    assert main(asked) == 0
    said = capsys.readouterr().err
    assert said == f"{gpt2}: goes through transformers, which is slower: ours lacks its model type 'gpt2'\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["policy_version"] for row in rows] == [str(gpt2)] * 2
    assert main([*asked, "--adapter", str(tmp_path)]) == 2
    assert "has neither adapters nor steering" in capsys.readouterr().err

    config = tmp_path / "evaluate.yaml"
    config.write_text(
        f"recipe: evaluate\nmodels: [{gpt2}, tiny]\nprompts: {prompts}\nn: 2\nmax_new_tokens: 6\n"
        f"precision: float32\n"
    )
    assert main(["evaluate", str(config), "--out", str(tmp_path / "run")]) == 0
    assert "slower" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [found["kl"] for found in summary["models"]] == [0, None], "tokenizers of two classes"
    samples = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    for row in map(json.loads, samples[:4]):
        assert row["logprob"] == row["baseline_logprob"] == pytest.approx(sum(row["logprobs"]), abs=1e-4)
    with pytest.raises(Unsupported, match="model type 'gpt2' is not supported; use one of llama"):
        load_model(str(gpt2), torch.float32)


def test_a_model_without_some_of_its_weights_is_refused(gpt2: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(gpt2, tmp_path / "model"))
    tensors = load_file(copy / "model.safetensors")
    del tensors["transformer.h.1.attn.c_attn.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"transformer\.h\.1\.attn\.c_attn\.weight is missing"):
        load_foreign(str(copy), torch.float32)


def test_what_transformers_does_not_know_either_is_refused(gpt2: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(gpt2, tmp_path / "model"))
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="'gpt2' cannot be read"):
        load_any(str(copy), torch.float32)
    config = json.loads((copy / "config.json").read_text())
    for kind in ("t5", "nonsense", None):
        (copy / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        with pytest.raises(UserError, match=f"model type '{kind}' is not supported"):
            find_any(str(copy))
