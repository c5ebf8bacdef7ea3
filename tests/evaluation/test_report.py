"""The report of a run, read as a browser reads it: what it shows, what it leaves out, what it never does."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plaudit import files
from plaudit.evaluation.page import num, pct, plain
from plaudit.evaluation.report import Round, findings, write_report
from plaudit.types import UserError

ATTACK = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \''
BROKEN = "half \ud800 a pair, a bell \x07, a null \x00, turned \u202e round"
VOID = {"meta", "line", "br", "link", "img", "input", "hr"}
SECTIONS = ["human", "wins", "training", "agreement", "reward", "reading", "time", "next"]


# A run -----------------------------------------------------------------------------------------------------


def summary(rounds: int = 2, **changes: Any) -> dict[str, Any]:
    """As the quickstart writes it, with figures that nobody could mistake for others."""
    own = [one_round(number) for number in range(1, rounds + 1)]
    last = own[-1]
    return {
        "seed": 5,
        "model": "smollm2",
        "raters": "panel",
        "seconds": {"sample": 12.5, "reward": 30.25, "improve": 401.75, "total": 444.5},
        "peak_rss_gb": 4.321,
        "judgements": 3141,
        "agreement": last["agreement"],
        "reward_model": last["reward_model"],
        "policy": last["policy"],
        "baselines": last["baselines"],
        "rounds": own,
        "machine": {"python": "3.11.7", "device": "x86_64"},
        "versions": {"plaudit": "0.1.0", "torch": "2.13.0"},
        **changes,
    }


def one_round(number: int) -> dict[str, Any]:
    sets = ("before", "after", "best_of_4", "constant")
    return {
        "judgements": 1500,
        "agreement": {"alpha": 0.707, "alpha_reason": None, "share": {}, "raters": {}, "seq": 9},
        "reward_model": {
            "heldout_comparisons": 258,
            "heldout_accuracy": 0.643 + number / 100,
            "length_only_accuracy": 0.488,
            "calibration_error": 0.061,
            "calibration": [
                {"predicted": 0.31, "observed": 0.28, "count": 40},
                {"predicted": 0.72, "observed": 0.77, "count": 12},
            ],
            "rating_correlation": 0.654,
        },
        "ppo": {"steps": 3, "stopped": None},
        "policy": {
            "judges": "panel",
            "win_rate": 0.623 + number / 100,
            "win_rate_ci95": [0.561 + number / 100, 0.687 + number / 100],
            "win_rate_unseen_words": 0.598,
            "overall_before": 0.611,
            "overall_after": 0.702,
            "relevance_before": 0.512,
            "relevance_after": 0.534,
            "kl_per_token": 0.1234,
            "distinct2_ratio": 0.913,
            "perplexity_ratio": 1.087,
            "reward_before": -0.04,
            "reward_after": 1.19,
        },
        "baselines": {
            name: {
                "valence": 0.1 + i / 100 + number / 1000,
                "relevance": 0.2 + i / 100,
                "fluency": 0.3 + i / 100,
                "overall": 0.4 + i / 100,
                "reward": 1.5 - i,
                "length": 20.0 + i,
                "perplexity": 30.0,
                "win_rate": 0.5 + i / 20,
            }
            for i, name in enumerate(sets)
        },
    }


def agreement() -> dict[str, Any]:
    def share(pairs: int, value: float) -> dict[str, Any]:
        return {"pairs": pairs, "share": value, "interval": [value - 0.04, value + 0.04], "reason": None}

    raters = ["rater-0", "rater-1", "<b>rater</b>"]
    return {
        "comparisons": {
            "judgements": 480,
            "alpha": {"ordinal": {"value": 0.717, "reason": None}},
            "agreement": share(480, 0.754),
            "pairs": [
                {"raters": ["rater-0", "rater-1"], "agreement": share(69, 0.81)},
                {"raters": ["<b>rater</b>", "rater-0"], "agreement": share(70, 0.66)},
                {"raters": ["<b>rater</b>", "rater-1"], "agreement": share(3, 1.0)},
            ],
        },
        "raters": {
            name: {
                "judgements": 600 + i,
                "skips": 3,
                "skip_share": 0.013,
                "majority": {"items": 90, "agreement": None if i == 2 else 0.87},
                "first": {"comparisons": 150, "share": 0.53, "interval": [0.45, 0.61] if i else None},
                "scores": {"overall": {"n": 300, "mean": 0.641, "sd": 0.132}} if i else {},
            }
            for i, name in enumerate(raters)
        },
    }


def write_run(directory: Path, rounds: int = 2) -> Path:
    """A run's files, with what a model may write at its worst."""
    files.write_text(
        directory / "config.yaml",
        "recipe: quickstart\nmodel: smollm2\nheldout_prompts: 12\npolicy:\n  kl_target: 0.15\n  max_kl: 0.28\n",
    )
    transitions = []
    for number in range(1, rounds + 1):
        place = directory / "rounds" / str(number)
        ppo = [
            {
                "step": step,
                "reward": None if step == 2 else 0.1 * step,
                "kl": 0.05 * step,
                "entropy": 3.0,
                "clip_fraction": 0.0,
                "value_error": 0.4,
                "eos_rate": 0.02,
                "length": 23.9,
                "tokens_per_second": 800.0,
            }
            for step in (1, 2, 3)
        ]
        _lines(place / "ppo" / "metrics.jsonl", ppo)
        reward = [{"step": step, "loss": 1.2 - step / 10, "accuracy": None} for step in (1, 2)]
        _lines(place / "reward" / "metrics.jsonl", reward)
        files.write_json(place / "agreement.json", agreement())
        _lines(
            place / "evaluation.jsonl",
            [
                {
                    "prompt": [{"role": "user", "content": f"Prompt {i} {ATTACK}"}],
                    "before": f"before {i} {ATTACK}",
                    "after": f"after {i} {BROKEN}",
                    "best_of_4": "best",
                    "constant": "constant",
                    "before_overall": 0.25 + i / 1000,
                    "after_overall": None if i == 3 else 0.75,
                }
                for i in range(12)
            ],
        )
        transitions += [
            {"round": number, "step": step, "seconds": seconds, "result": {}}
            for step, seconds in (("sample", 6.25), ("reward", 15.125), ("improve", 200.875))
        ]
    files.write_json(directory / "loop.json", {"transitions": transitions})
    return directory


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


# Reading it as a browser does ------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements, the figures of <data>, the scripts, and the text below each open element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.data: list[float] = []
        self.words: list[str] = []
        self.tiles: dict[str, str] = {}
        self.headings: list[tuple[str, str]] = []
        self.styles = ""
        self.sides: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "data":
            self.data.append(float(found["value"] or "nan"))
        if tag == "dt":
            self.tiles[""] = ""
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((tag, ""))
        if "written" in (found.get("class") or "").split():
            self.sides.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
            return
        if self.open and self.open[-1] == "style":
            self.styles += data
            return
        self.words.append(data)
        if "dt" in self.open:
            self.tiles[data] = self.tiles.pop("")
        elif "dl" in self.open and self.tiles:
            self.tiles[list(self.tiles)[-1]] += data
        for level in ("h1", "h2", "h3", "h4"):
            if level in self.open:
                self.headings[-1] = (level, self.headings[-1][1] + data)
        if self.open[-1:] in (["p"], ["h3"]) and self.sides and "li" in self.open:
            self.sides[-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words).replace("\u202f", " "))

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def read(directory: Path, found: dict[str, Any]) -> Page:
    return Page(write_report(directory, found).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read(write_run(tmp_path_factory.mktemp("run")), summary())


# What it shows ---------------------------------------------------------------------------------------------


def test_headline_and_key_figures_are_the_summarys(page: Page) -> None:
    assert page.headings[0][0] == "h1"
    headline = re.sub(r"\s+", " ", page.headings[0][1].replace("\u202f", " ")).strip()
    assert (
        headline == "The improved model wins 64 % of comparisons with its start (95 % interval 58 % to 71 %)."
    )
    assert "The whole interval lies above 50 %" in page.text
    tiles = {
        name: re.sub(r"\s+", " ", text.replace("\u202f", " ")).strip() for name, text in page.tiles.items()
    }
    expected = {
        "Wins on unseen words": "60 %",
        "Relevance": "0.51 to 0.53",
        "Distance from the start": "0.123",
        "Variety kept": "0.91",
        "Surprise": "1.09",
        "Judgements": "3,141",
        "Minutes": "7.4",
        "Peak memory": "4.3 GB",
    }
    assert tiles.keys() == expected.keys()
    for name, value in expected.items():
        assert tiles[name].startswith(value), name
    found = summary()
    policy = found["policy"]
    exact = [policy["win_rate"], *policy["win_rate_ci95"], policy["win_rate_unseen_words"], 444.5 / 60, 4.321]
    assert set(exact) <= set(page.data)


def test_tables_hold_every_rounds_figures(page: Page) -> None:
    found = summary()
    for one in found["rounds"]:
        for name, row in one["baselines"].items():
            wanted = {row["valence"], row["relevance"], row["fluency"], row["overall"], row["reward"]}
            assert wanted <= set(page.data), name
        assert one["reward_model"]["heldout_accuracy"] in page.data
    for value in (0.717, 0.754, 0.87, 0.013, 0.641, 0.132, 0.488, 0.061, 0.77, 15.125, 401.75):
        assert value in page.data, value


def test_all_parts_are_there_in_order(page: Page) -> None:
    ids = page.attributes("id")
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    assert len(ids) == len(set(ids))
    assert set(page.attributes("aria-labelledby")) == set(SECTIONS)
    anchors = page.attributes("href")
    assert sorted(anchors) == sorted(f"#{name}" for name in SECTIONS)
    plots = {name.removeprefix("plot-") for name in ids if name.startswith("plot-")}
    assert plots == set(page.figures)
    assert {"wins", "curve-kl", "disagreement", "calibration", "reward-loss", "time"} <= plots
    assert len([name for name in plots if name.startswith("curve-")]) == 8


def test_plots_are_described_and_headings_do_not_skip(page: Page) -> None:
    images = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(images) == len(page.figures)
    assert all(len(attrs.get("aria-label") or "") > 20 for attrs in images)
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(text.strip() for _, text in page.headings)


def test_plotly_knows_every_part_of_the_charts(page: Page) -> None:
    import plotly.graph_objects as go

    for name, figure in page.figures.items():
        text = json.dumps(figure)
        for colour in re.findall(r'"var\((--[a-z0-9-]+)\)"', text):
            assert f"{colour}:" in page.styles, f"{name}: the page has no colour {colour}"
        go.Figure(
            json.loads(re.sub(r'"var\(--[a-z0-9-]+\)"', '"#123456"', text))
        )  # ValueError for what is unknown


def test_charts_show_the_runs_numbers(page: Page) -> None:
    wins = page.figures["wins"]["data"]
    assert [trace["x"] for trace in wins] == [[0.633], [0.643], [0.6], [0.6], [0.65]]
    error = wins[1]["error_x"]
    assert error["array"] == [pytest.approx(0.707 - 0.643)]
    assert error["arrayminus"] == [pytest.approx(0.643 - 0.581)]
    assert [trace["error_x"]["visible"] for trace in wins] == [True, True, False, False, False]
    kl = page.figures["curve-kl"]
    assert [line["y0"] for line in kl["layout"]["shapes"]] == [0.28, 0.15]
    assert [trace["name"] for trace in kl["data"]] == ["Round 1", "Round 2"]
    assert page.figures["curve-reward"]["data"][0]["y"] == [0.1, None, pytest.approx(0.3)]
    heat = page.figures["disagreement"]
    assert heat["layout"]["xaxis"]["ticktext"] == ["&lt;b&gt;rater&lt;/b&gt;", "rater-0", "rater-1"]
    assert heat["data"][0]["z"] == [
        [None, 0.34, None],
        [0.34, None, 0.19],
        [None, 0.19, None],
    ]  # 3 shared: too few
    assert page.figures["time"]["data"][0]["x"] == [6.25, 15.125, 200.875]


def test_eight_pairs_are_drawn_by_the_seed_alone(page: Page, tmp_path: Path) -> None:
    def prompts(found: Page) -> list[str]:
        return [match for side in found.sides for match in re.findall(r"Prompt \d+", side)]

    assert len(prompts(page)) == 8
    assert len(set(prompts(page))) == 8
    assert "not picked" in page.text
    again = read(write_run(tmp_path / "again"), summary(policy=one_round(1)["policy"]))
    other = read(write_run(tmp_path / "other"), summary(seed=6))
    assert prompts(again) == prompts(page) != prompts(other)


def test_says_what_is_human_and_what_is_simulated(page: Page) -> None:
    assert "ten people rated each word" in page.text
    assert "a column is a resampled lexicon, not a person" in page.text
    assert "drawn from the seed" in page.text
    from plaudit.feedback.panel import training_raters

    for rater in training_raters(5):
        assert {rater.leniency, rater.noise, rater.side_bias, rater.skip} <= set(page.data)


# What it never does ----------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for name in ("src", "srcset", "poster", "data", "action", "formaction", "background", "cite", "ping"):
        assert page.attributes(name) == [], name
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert {tag for tag, _ in page.tags} & {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "img",
        "form",
    } == set()
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_only_the_pages_two_scripts_may_run(page: Page) -> None:
    data, plotly, own = page.scripts
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    allowed = re.search(r"script-src ([^;]*);", policy or "")
    assert allowed is not None
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (plotly, own)]
    assert allowed[1].split() == [f"'sha256-{one}'" for one in hashes]
    assert sum("plotly.js v" in text[:200] for text in page.scripts) == 1
    assert len(plotly) > 1_000_000
    assert not re.search("[<>&]", data)
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []


def test_what_a_model_wrote_is_text(page: Page) -> None:
    shown = "".join(page.sides)
    assert (
        shown.count("<script>alert(1)</script><img src=x onerror=alert(2)>") == 16
    )  # as letters, not as elements
    assert "<b>rater</b>" in page.text
    assert "half ? a pair" in shown or "half \ufffd a pair" in shown
    assert "\x00" not in shown
    assert "a bell \u2407, a null \u2400, turned \ufffd round" in shown


def test_a_hostile_model_name_and_reason_are_text(tmp_path: Path) -> None:
    found = summary(model=ATTACK, machine={ATTACK: ATTACK}, versions={"plaudit": ATTACK})
    found["rounds"][0]["ppo"] = {"steps": ATTACK, "stopped": ATTACK}
    page = read(write_run(tmp_path / "run"), found)
    assert len(page.scripts) == 3
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "stopped by itself after" in page.text


# Runs that lack something ----------------------------------------------------------------------------------


def mine() -> dict[str, Any]:
    """A run judged by one person, who then compared nothing blind."""
    found = summary(1, raters="me")
    policy = found["policy"]
    policy |= {"judges": "me", "win_rate": None, "win_rate_ci95": None, "win_rate_unseen_words": None}
    policy |= {"blind_answers": 0}
    found["agreement"] |= {"alpha": None, "alpha_reason": "needs two raters"}
    found["reward_model"] |= {"heldout_accuracy": None, "length_only_accuracy": None, "calibration": []}
    found["reward_model"] |= {"calibration_error": None, "rating_correlation": None}
    return found


def test_a_persons_run_without_a_win_rate(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    one = agreement()
    one["comparisons"] |= {
        "alpha": {"ordinal": {"value": None, "reason": "needs two raters"}},
        "agreement": {
            "pairs": 0,
            "share": None,
            "interval": None,
            "reason": "no item was judged by two raters",
        },
        "pairs": [],
    }
    files.write_json(run / "rounds" / "1" / "agreement.json", one)
    page = read(run, mine())
    assert "has no win rate" in page.headings[0][1]
    assert (
        "The model learnt what one person likes" in page.text or "learnt what one person likes" in page.text
    )
    assert "needs two raters" in page.text
    assert "Nothing was held out" in page.text
    assert "resampled" not in page.text
    assert page.figures.keys() & {"wins", "disagreement", "calibration"} == set()
    assert page.figures.keys() >= {"curve-reward", "time"}


def test_a_persons_win_rate_stands_without_the_panels_baselines(tmp_path: Path) -> None:
    found = mine()
    found["policy"] |= {"win_rate": 0.55, "win_rate_ci95": [0.35, 0.75], "blind_answers": 20}
    page = read(write_run(tmp_path / "run", 1), found)
    assert "You compared 20 pairs without knowing which was which" in page.text
    assert "no clear difference" in page.text
    assert [trace["x"] for trace in page.figures["wins"]["data"]] == [[0.55]]
    assert "Wins (simulated judges)" in page.text


def test_a_model_that_got_worse_is_said_to_be_worse(tmp_path: Path) -> None:
    found = summary(1)
    found["policy"] |= {"win_rate": 0.3, "win_rate_ci95": [0.2, 0.4]}
    assert "the model got worse" in read(write_run(tmp_path / "run", 1), found).text


def test_a_run_that_stopped_early_says_why(tmp_path: Path) -> None:
    found = summary()
    found["rounds"][1]["ppo"] = {"steps": 2, "stopped": "KL 0.310 nats a token is over 0.28"}
    text = read(write_run(tmp_path / "run"), found).text
    assert "Round 2 stopped by itself after 2 steps." in text
    assert "KL 0.310 nats a token is over 0.28" in text


def test_files_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    page = read(bare, summary())
    assert [name for name in page.attributes("id") if name in SECTIONS] == SECTIONS
    assert set(page.figures) == {"wins", "calibration"}
    assert "There are no training metrics" in page.text
    nearly = read(bare, {"seed": 0, "policy": {}, "rounds": []})
    assert "has no win rate" in nearly.text
    assert nearly.figures == {}


@pytest.mark.parametrize("name", ["agreement.json", "evaluation.jsonl"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", 1)
    (run / "rounds" / "1" / name).write_text('{"half": ', encoding="utf-8")
    with pytest.raises(UserError, match=name):
        write_report(run, summary(1))


def test_written_at_once_and_the_same_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = sorted(path.name for path in run.iterdir())
    first = write_report(run, summary()).read_bytes()
    assert write_report(run, summary()) == run / "report.html"
    assert (run / "report.html").read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == sorted([*before, "report.html"])
    shutil.rmtree(run)


# Parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.6234, 0, "62 %"),
        (0.6234, 1, "62.3 %"),
        (0.0, 0, "0 %"),
        (1, 0, "100 %"),
        (None, 0, "–"),
        (True, 0, "–"),
    ],
)
def test_shares(value: Any, digits: int, shown: str) -> None:
    assert re.sub("<.*?>", "", str(pct(value, digits))).replace("\u202f", " ") == shown


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(3141, 0, "3,141"), (-0.5, 1, "−0.5"), (-0.001, 2, "0.00"), (float("nan"), 1, "–"), ("x", 1, "–")],
)
def test_numbers(value: Any, digits: int, shown: str) -> None:
    assert re.sub("<.*?>", "", str(num(value, digits))) == shown


def test_joined_emoji_stay_whole() -> None:
    assert plain("👩\u200d🔬 a\tb\nc") == "👩\u200d🔬 a\tb\nc"


def test_needs_no_torch() -> None:
    code = "import sys, plaudit.evaluation.report; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("judges", "told"), [("panel", True), ("me", False)])
def test_those_alone_who_took_no_part_in_training_are_heard_of_the_reward(judges: str, told: bool) -> None:
    measured = {"judges": judges, "reward_before": 0.0, "reward_after": 1.0, "win_rate_ci95": [0.1, 0.3]}
    ppo = [{"step": step, "reward": 0.1 * step, "kl": 0.01 * step} for step in range(1, 9)]
    last = Round(1, 0, {"policy": measured}, ppo, [], {}, [])
    found = findings(last, {"policy": {"kl_coef": 0.1}})
    assert any("judges prefer the start" in finding.what for finding in found) == told
    assert not any("gold" in finding.what for finding in found)
