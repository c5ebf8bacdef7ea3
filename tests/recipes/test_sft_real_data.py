"""Supervised fine-tuning on what people outside the project wrote: dialogue, questions, translation, summaries, labels.

Each is plain records by a few lines; what is checked is that the loss sees completions' tokens alone, ends included.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.data.collate import pack
from plaudit.data.demonstrations import read_demonstrations
from plaudit.models.branch import token_logprobs
from plaudit.models.load import Model, find_model, load_model
from plaudit.recipes import sft
from plaudit.training.policy import AdapterConfig, make_policy
from tiny_models import transformers_model

Pairs = Iterator[tuple[Any, str]]


def zipped(path: Path, encoding: str = "utf-8") -> str:
    return gzip.decompress(path.read_bytes()).decode(encoding)


def dialogue(root: Path) -> Pairs:
    for talk in json.loads(zipped(root / "sft_kdconv_zh" / "film.dev.json.gz")):
        said = [turn["message"] for turn in talk["messages"][:4]]
        roles = ("user", "assistant", "user")
        yield [{"role": r, "content": c} for r, c in zip(roles, said[:3], strict=True)], said[3]


def reading(root: Path) -> Pairs:
    for article in json.loads(zipped(root / "qa_cmrc2018" / "cmrc2018_trial.json.gz"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                prompt = f"{paragraph['context']}\n\n问题：{qa['question']}\n答案："
                yield prompt, qa["answers"][0]["text"]


def maths(root: Path) -> Pairs:
    for line in (root / "qa_gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield [{"role": "user", "content": row["question"]}], row["answer"]


def translation(root: Path) -> Pairs:
    for line in zipped(root / "mt_tatoeba_en_zh" / "cmn.txt.gz").splitlines():
        english, chinese, _ = line.split("\t")
        yield f"Translate into Chinese: {english}\n", chinese


def summary(root: Path) -> Pairs:
    for line in (root / "sum_dialogsum" / "dialogsum.dev.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield f"{row['dialogue']}\n\nSummary:", f" {row['summary']}"


def sentiment(root: Path) -> Pairs:
    for label in ("neg", "pos"):
        for line in zipped(root / "cls_rt_polarity" / f"rt-polarity.{label}.gz", "latin-1").split("\n")[:50]:
            yield f"{line}\nThis review is", {"neg": " negative", "pos": " positive"}[label]


def spam(root: Path) -> Pairs:
    for line in (root / "cls_sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8").split("\n")[:100]:
        label, _, message = line.partition("\t")
        yield message, label


FORMATS: dict[str, Callable[[Path], Pairs]] = {
    f.__name__: f for f in (dialogue, reading, maths, translation, summary, sentiment, spam)
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model with a context as long as the texts: Chinese takes it three tokens a character."""
    directory = tmp_path_factory.mktemp("model") / "long"
    shutil.copytree(find_model("tiny"), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16_384}))
    return load_model(str(directory), torch.float32)


def records(name: str, root: Path, directory: Path, count: int) -> tuple[str, list[tuple[Any, str]]]:
    found = [pair for _, pair in zip(range(count), FORMATS[name](root), strict=False)]
    path = directory / f"{name}.jsonl"
    rows = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) + "\n" for p, c in found]
    path.write_text("".join(rows), encoding="utf-8")
    return str(path), found


@pytest.mark.parametrize("name", FORMATS)
def test_the_loss_sees_the_completion_and_its_end(
    name: str, real_data: Path, tmp_path: Path, model: Model
) -> None:
    path, pairs = records(name, real_data, tmp_path, 6)
    shown = read_demonstrations([path], model.tokenizer, model.trunk.shape.context)
    packed = pack([s.prompt for s in shown], [s.completion for s in shown])
    assert len(pairs) == 6
    for (prompt, completion), tokens, mask, s in zip(pairs, packed.tokens, packed.mask, shown, strict=True):
        counted = tokens[mask].tolist()
        assert counted[-1] == 1  # the end of text
        assert counted.count(1) == 1
        assert model.tokenizer.inner.decode(counted[:-1]) == completion
        text = model.tokenizer.inner.decode(s.prompt)
        if isinstance(prompt, str):
            assert text == prompt
        else:
            said = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in prompt)
            assert text == f"{said}<|assistant|>"

    # Golden: transformers' cross-entropy with the prompt's labels ignored.
    theirs = transformers_model(model.directory, torch.float32)
    branch = make_policy(model, AdapterConfig(rank=2), seed=0)
    with torch.no_grad():
        logprobs = token_logprobs(branch, packed).logprobs
        for ours, one in zip(logprobs, shown, strict=True):
            ids = torch.tensor([one.prompt + one.completion])
            labels = ids.clone()
            labels[:, : len(one.prompt)] = -100
            expected = float(theirs(input_ids=ids, labels=labels).loss) * len(one.completion)
            assert -float(ours.sum()) == pytest.approx(expected, rel=1e-4)  # float32, as it is trained


def test_all_of_them_in_one_mixture(real_data: Path, tmp_path: Path, model: Model) -> None:
    """Seven tasks and a play: every loss a number, every task drawn, the training loss falls."""
    paths = [records(name, real_data, tmp_path, 12)[0] for name in FORMATS]
    play = tmp_path / "play.txt"
    play.write_text(zipped(real_data / "text_tinyshakespeare" / "input.txt.gz")[:6000], encoding="utf-8")
    config = sft.Config.model_validate(
        {
            "data": [*paths, str(play)], "window": 128, "heldout": 0.25, "epochs": 2, "batch_size": 8,
            "learning_rate": 5e-3, "dropout": 0.1, "schedule": "cosine", "evaluate_every": 8, "keep": "best",
            "mixture": {"rule": "ratio", "temperature": 2.0}, "precision": "float32", "threads": 1,
        }
    )  # fmt: skip
    found = sft.run(config, tmp_path / "run", model=model)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found["heldout_losses"].keys() == {*FORMATS, "play"}
    assert found["heldout_loss"] < found["heldout_loss_before"] - 0.2
    assert sum(row["loss"] for row in rows[-4:]) < sum(row["loss"] for row in rows[:4])
    assert all(
        sum(x for name, x in row.items() if name.startswith("weight/")) == pytest.approx(1) for row in rows
    )
