"""When the reward is pushed too far: gold and proxy against KL, for best-of-n and PPO (Gao et al. 2022, small).

    python benchmarks/overoptimisation.py --runs runs/overoptimisation     # about 25 minutes of one core

A world is a small random Llama that speaks 32 words (the start) and a fixed random network that says what is good (the
gold reward): a wider random Llama reads the text, eight random sines of what it read are added up, and the sum has
mean 0 and standard deviation 1 on the start's samples. So much of each feature is good and more of it is not: near the
start gold is mostly a slope, far away the slope says nothing. Ten raters compare pairs of the start's samples, three a
pair: seven choose by gold with noise, three toss a coin. From the first n labels the recipe reward_model learns the
proxies: one plain model; four, each with a seed of its own, as mean minus deviation; one that knows who judged; and one
without the coin tossers' labels, to compare. Each is optimised on 64 prompts that nobody judged: by best-of-n, and by
the recipe ppo, without a price for KL and without stop rules, while gold looks on. KL is in nats a completion, from the
start. Every seed is a world of its own.

Each part is a file below --runs and is read where it is there, so that a study that was stopped goes on. What is found
goes to benchmarks/overoptimisation.json; the chart to overoptimisation.html below --runs and, where there is a
Chromium, to docs/images/overoptimisation.png; with other seeds or another bend all of it goes below --runs. The tables
of benchmarks/README.md are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import overoptimisation_page as page
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file

from plaudit import files
from plaudit.data.collate import micro_batches, pack
from plaudit.models.branch import Branch, pooled_states
from plaudit.models.load import Model, load_model
from plaudit.randomness import rng, torch_seed
from plaudit.recipes import ppo, reward_model
from plaudit.reward.open import open_scorer
from plaudit.rollout.generate import sample_row
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.training import machine, metrics
from plaudit.training.online import KLConfig, StopConfig

HERE = Path(__file__).parent
WORDS = tuple(a + b for a in "bdfghjklmnprstvz" for b in "ao")
SPECIAL = ("<|pad|>", "<|end|>")
PROMPT_WORDS, LONGEST = 4, 16
RATERS, COIN_TOSSERS, OVERLAP = 10, 3, 3
SINES = 8
SHARPNESS = 2.0
"""Of a careful rater: log-odds for each standard deviation of gold between two completions."""
METHODS = ("single", "ensemble", "aware", "oracle")  # PPO: without the last
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Study:
    """How large it is. labels: how many a proxy learns from; samples: of each prompt, for best-of-n; bend: the
    deviation inside each sine of gold over the start's samples, in radians."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    bend: float = 0.8
    labels: tuple[int, ...] = (300, 1200, 4800)
    width: int = 64
    depth: int = 2
    gold_width: int = 128
    members: int = 4
    prompts: int = 64
    samples: int = 256
    steps: int = 28
    samples_per_step: int = 2


# 1. The world: a model that starts, and a larger one that says what is good.
def make_model(directory: Path, *key: int | str, width: int, depth: int) -> Model:
    """A random Llama over the words, with its tokenizer; made once, then read."""
    if not (directory / "config.json").exists():
        with files.new_directory(directory) as place:
            _write_model(place, torch_seed("overoptimisation", *key), width, depth)
    return load_model(str(directory), torch.float32)


def _write_model(place: Path, seed: int, width: int, depth: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=SPECIAL[1], pad_token=SPECIAL[0], unk_token=SPECIAL[0]
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": width,
        "intermediate_size": 2 * width, "num_hidden_layers": depth, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": width // 4, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": None, "pad_token_id": 0,
        "eos_token_id": 1, "vocab_size": len(vocab), "dtype": "float32",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, gain: float = 1.5) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * gain / math.sqrt(columns)

    tensors = {
        "model.embed_tokens.weight": normal(len(vocab), width, math.sqrt(width)),
        "model.norm.weight": torch.ones(width),
        "lm_head.weight": normal(len(vocab), width),
    }
    tensors["lm_head.weight"][: len(SPECIAL)] = 0  # so that few completions end before the last word
    for block in range(depth):
        prefix = f"model.layers.{block}."
        for name in ("q", "k", "v", "o"):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(width, width)
        for name in ("gate", "up"):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = normal(2 * width, width)
        tensors[f"{prefix}mlp.down_proj.weight"] = normal(width, 2 * width)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(width)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(str(place))
    files.write_json(place / "config.json", config)


def make_gold(model: Model, reference: Sequence[Sample], bend: float, seed: int) -> None:
    """The rest of the gold network, as gold.json beside the Llama that reads for it."""
    states, draw = states_of(model, reference), rng("gold", seed)
    weights = draw.normal(size=(states.shape[1], SINES))
    inside = (states - states.mean(0)) @ weights
    weights, inside = weights * bend / inside.std(0), inside * bend / inside.std(0)
    phases, signs = draw.uniform(0, 2 * np.pi, SINES), draw.choice([-1.0, 1.0], SINES)
    raw = np.sin(inside + phases) @ signs
    net = {"centre": states.mean(0), "mean": raw.mean(), "std": raw.std()}
    net |= {"weights": weights, "phases": phases, "signs": signs}
    files.write_json(model.directory / "gold.json", {name: value.tolist() for name, value in net.items()})


def gold(samples: Sequence[Sample], *, model: str) -> list[float]:
    """The gold reward of each sample, by the network in a directory: a rule, as a config names one."""
    llama, net = _gold(model)
    inside = (states_of(llama, samples) - net["centre"]) @ net["weights"]
    return list((np.sin(inside + net["phases"]) @ net["signs"] - net["mean"]) / net["std"])


@cache
def _gold(directory: str) -> tuple[Model, dict[str, Floats]]:
    told = json.loads((Path(directory) / "gold.json").read_text(encoding="utf-8"))
    return load_model(directory, torch.float32), {name: np.array(value) for name, value in told.items()}


@torch.no_grad()
def states_of(model: Model, samples: Sequence[Sample]) -> Floats:
    """[samples, width]: the mean over a completion's tokens of what the model makes of them."""
    packed = pack([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    out = torch.zeros(len(samples), model.trunk.shape.width)
    for rows in micro_batches(packed, 16_384):
        part, index = packed.take(rows)
        out[index] = pooled_states(Branch(model.trunk, pool="mean"), part)
    return np.asarray(out.double().numpy())


@dataclass(frozen=True, slots=True)
class World:
    """A seed's directory, the start, the name of the gold reward, and the prompts that are optimised for."""

    seed: int
    directory: Path
    start: Model
    gold: str
    prompts: list[str]

    def golden(self, samples: Sequence[Sample]) -> Floats:
        return np.array(gold(samples, model=str(self.directory / "gold")))

    def sample(self, prompts: Sequence[str], n: int, purpose: str) -> list[Sample]:
        """n samples of the start for each prompt, by prompt."""
        engine = LocalEngine(self.start.trunk, self.start.tokenizer, max_batch=512)
        ids = [self.start.tokenizer.render(prompt) for prompt in prompts]
        drawn = engine.sample(ids, n, SamplingParams(max_new_tokens=LONGEST), (self.seed, purpose))
        found = sorted(drawn, key=lambda s: (s.prompt, s.index))
        return [replace(sample, asked=prompts[sample.prompt]) for sample in found]

    def reference(self) -> list[Sample]:
        """On which gold and proxies have mean 0 and standard deviation 1."""
        return self.sample(draw_prompts(512, self.seed, "reference"), 2, "reference")


def draw_prompts(count: int, *key: int | str) -> list[str]:
    return [" ".join(words) for words in rng("prompts", *key).choice(WORDS, (count, PROMPT_WORDS))]


def make_world(study: Study, seed: int, runs: Path) -> World:
    """The models, gold's unit (mean 0, standard deviation 1 on the start's samples) and the prompts, as files."""
    place = runs / f"seed-{seed}"
    start = make_model(place / "start", seed, "start", width=study.width, depth=study.depth)
    reader = make_model(place / "gold", seed, "gold", width=study.gold_width, depth=1)
    rule = place / "gold.yaml"
    world = World(seed, place, start, str(rule), draw_prompts(study.prompts, seed, "optimised"))
    if not rule.exists():
        files.write_rows(place / "prompts.jsonl", [{"prompt": prompt} for prompt in world.prompts])
        reference = world.reference()
        files.write_rows(place / "reference.jsonl", [sample_row(s, s.asked or "", seed) for s in reference])
        make_gold(reader, reference, study.bend, seed)
        told = {"kind": "rule", "rule": "overoptimisation:gold", "options": {"model": str(place / "gold")}}
        files.write_text(rule, yaml.safe_dump(told))
    return world


# 2. Judgements: three raters a pair of the start's samples; the first n labels are learned from.
def judge(world: World, labels: int) -> tuple[Path, Path, Path]:
    """Files of so many judgements, of those by careful raters alone, and of the samples that were judged."""
    place = world.directory / f"labels-{labels}"
    paths = place / "labels.jsonl", place / "careful.jsonl", place / "samples.jsonl"
    if not paths[2].exists():
        pairs = -(-labels // OVERLAP)
        samples = world.sample(draw_prompts(pairs, world.seed, "judged"), 2, "judged")
        rows, worth = [], world.golden(samples)
        for pair in range(pairs):
            draw, two = rng(world.seed, "judge", pair), samples[2 * pair : 2 * pair + 2]
            for rater in draw.choice(RATERS, OVERLAP, replace=False).tolist():
                gap = 0.0 if rater < COIN_TOSSERS else SHARPNESS * (worth[2 * pair] - worth[2 * pair + 1])
                choice = int(draw.random() >= 1 / (1 + math.exp(-gap)))
                said = {
                    "choice": choice,
                    "presented": draw.permutation(2).tolist(),
                    "rater": f"rater {rater}",
                }
                rows.append({"prompt": two[0].asked, "completions": [s.text for s in two], **said})
        tossers = {f"rater {r}" for r in range(COIN_TOSSERS)}
        files.write_rows(paths[0], rows[:labels])
        files.write_rows(paths[1], [row for row in rows[:labels] if row["rater"] not in tossers])
        files.write_rows(paths[2], [sample_row(s, s.asked or "", world.seed) for s in samples])
    return paths


# 3. Proxies: what a config's `reward` names.
def proxies(world: World, labels: int, study: Study) -> dict[str, str]:
    """By method, a reward model's directory or the description of the ensemble."""
    every, careful, samples = judge(world, labels)

    def learned(name: str, data: Path, raters: Any, seed: int) -> str:
        out = every.parent / name
        if not (out / "summary.json").exists():
            config = reward_model.Config(
                data=[str(data)],
                samples=[str(samples)],
                reference=[str(world.directory / "reference.jsonl")],
                seed=seed,
                pool="mean",
                exit=0.5,
                probe=True,
                adapter=reward_model.AdapterConfig(blocks=0),
                prompts_per_step=16,
                learning_rate=1e-3,
                raters=raters,
                precision="float32",
                threads=1,
                checkpoint_every=10_000,
            )
            reward_model.run(config, out, model=world.start)
        return str(out / "model")

    members = [learned(f"single-{m}", every, "crowd", m) for m in range(study.members)]
    raw, ensemble = every.parent / "members.yaml", every.parent / "ensemble.yaml"
    if not ensemble.exists():
        told = {"kind": "ensemble", "members": members, "combine": "mean_minus_std", "k": 1.0}
        files.write_text(raw, yaml.safe_dump(told))
        said = np.array(open_scorer(str(raw), world.start).score(world.reference()))
        unit = {"name": "standardise", "mean": float(said.mean()), "std": float(said.std())}
        files.write_text(ensemble, yaml.safe_dump(told | {"transform": [unit]}))
    return {
        "single": members[0],
        "ensemble": str(ensemble),
        "aware": learned("aware", every, "aware", 0),
        "oracle": learned("oracle", careful, "crowd", 0),
    }


# 4. Best-of-n: what the best of n samples by the proxy is worth, from all samples of a prompt.
def best_of(n: int, proxy: Floats, gold: Floats) -> tuple[float, float]:
    """Proxy and gold, [N] each, of the best of n of them by the proxy, in expectation over all choices of n; of equals
    any (Nakano et al. 2021, appendix I; Gao et al. 2022). ValueError for n over N."""
    count = len(proxy)
    if not 1 <= n <= count:
        raise ValueError(f"the best of {n} of {count}")
    # The i-th from below is the best of those n that hold it and n - 1 of the i - 1 below it.
    weights = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    _, place, times = np.unique(proxy, return_inverse=True, return_counts=True)
    level = (np.bincount(place, gold) / times)[place]
    order = np.argsort(proxy)
    return float(weights @ proxy[order]), float(weights @ level[order])


def best_of_kl(n: int) -> float:
    """Nats between the best of n and one sample (Hilton and Gao 2022), an upper bound where scores are equal."""
    return math.log(n) - (n - 1) / n


def best_of_n(world: World, named: dict[str, str], samples: list[Sample], worth: Floats) -> dict[str, Any]:
    """By method: points of n, KL, proxy and gold, means over prompts; and how proxy and gold go together."""
    found, prompts = {}, len(world.prompts)
    sizes = [2**k for k in range((len(samples) // prompts).bit_length())]
    for method, spec in named.items():
        scores = np.array(open_scorer(spec, world.start).score(samples))
        each = list(zip(scores.reshape(prompts, -1), worth.reshape(prompts, -1), strict=True))
        points = []
        for n in sizes:
            proxy, real = np.mean([best_of(n, *one) for one in each], axis=0)
            points.append({"n": n, "kl": best_of_kl(n), "proxy": float(proxy), "gold": float(real)})
        found[method] = {"points": points, "correlation": float(np.corrcoef(scores, worth)[0, 1])}
    return found


# 5. PPO, without a price for KL and without a rule that stops it.
def pushed(world: World, spec: str, out: Path, study: Study) -> list[dict[str, float]]:
    """A point a step: KL in nats a completion, proxy and gold."""
    if not (out / "summary.json").exists():
        config = ppo.Config(
            model=str(world.directory / "start"),
            prompts=str(world.directory / "prompts.jsonl"),
            reward=spec,
            gold=world.gold,
            seed=world.seed,
            steps=study.steps,
            prompts_per_step=min(32, study.prompts),
            samples_per_prompt=study.samples_per_step,
            max_new_tokens=LONGEST,
            missing_eos_penalty=None,
            epochs=2,
            learning_rate=3e-3,
            adapter=ppo.AdapterConfig(blocks=0),
            kl=KLConfig(coef=0.0),
            stop=StopConfig(max_kl=1e9, min_entropy=-1.0, max_length_growth=1e9, patience=10**6),
            precision="float32",
            threads=1,
            checkpoint_every=10_000,
        )
        ppo.run(config, out, model=world.start)
    return [
        {"step": row["step"], "kl": row["kl"] * row["length"], "proxy": row["reward"], "gold": row["gold"]}
        for row in metrics.read(out / "metrics.jsonl")
    ]


# 6. All of it: a row for each seed and number of labels.
def measured(study: Study, seed: int, runs: Path) -> list[dict[str, Any]]:
    world, rows, drawn = make_world(study, seed, runs), [], None
    for labels in study.labels:
        place = world.directory / f"labels-{labels}"
        record, begun = place / "found.json", time.process_time()
        if not record.exists():
            named = proxies(world, labels, study)
            if drawn is None:
                samples = world.sample(world.prompts, study.samples, "best of n")
                drawn = samples, world.golden(samples)
            found: dict[str, Any] = {"seed": seed, "labels": labels}
            found["best_of_n"] = best_of_n(world, named, *drawn)
            found["ppo"] = {m: pushed(world, named[m], place / f"ppo-{m}", study) for m in METHODS[:-1]}
            files.write_json(record, found | {"cpu_seconds": round(time.process_time() - begun)})
        rows.append(json.loads(record.read_text(encoding="utf-8")))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the parts are, or go")
    parser.add_argument("--seeds", type=int, nargs="+", default=Study().seeds)
    parser.add_argument("--bend", type=float, default=Study().bend, help="of gold; give each its own --runs")
    parser.add_argument(
        "--record", type=Path, help="by default the one in benchmarks/, of other settings below --runs"
    )
    parser.add_argument(
        "--image", type=Path, help="by default the one in docs/images/, of other settings below --runs"
    )
    given = parser.parse_args()
    study, runs = replace(Study(), seeds=tuple(given.seeds), bend=given.bend), given.runs.resolve()
    if len(study.seeds) not in (1, *page.STUDENT):
        parser.error(f"give 1 to {max(page.STUDENT)} seeds")
    usual = study == Study()
    record = given.record or (HERE if usual else runs) / "overoptimisation.json"
    image = given.image or (HERE.parent / "docs" / "images" if usual else runs) / "overoptimisation.png"
    machine.prepare("float32", 1)
    runs.mkdir(parents=True, exist_ok=True)
    rows = []
    with open(runs / "log.txt", "a", encoding="utf-8") as log:
        for seed in study.seeds:
            with contextlib.redirect_stderr(log):  # the recipes' lines, one a step
                rows += measured(study, seed, runs)
            print(
                f"seed {seed}: {[row['cpu_seconds'] for row in rows if row['seed'] == seed]} CPU s",
                flush=True,
            )
    files.write_text(record, json.dumps(rows) + "\n")
    print("\n\n".join(page.tables(rows)))
    page.draw(rows, runs / "overoptimisation.html", image)


if __name__ == "__main__":
    main()
