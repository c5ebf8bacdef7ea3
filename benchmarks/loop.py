"""The loop over HTTP alone, with simulated people: `plaudit serve`, a chat client, `/v1/feedback`, `plaudit loop run`.

    python benchmarks/loop.py http      # three rounds, and one round on as many judgements at once
    python benchmarks/loop.py drift     # taste turns to its contrary in round 3, at the gate, too
    python benchmarks/loop.py poison    # a fifth of all choices say the contrary of what is thought
    python benchmarks/loop.py online    # a step for each choice: one taste, then another's, with replay and without

The client asks two answers a prompt from the served model and says which it prefers, as one of the panel's seven
training raters would; the gate's judges are the panel's other three. In `drift` these three are people to the loop, who
answer in its project at the gate, and their taste turns, too. In `online` the second round is about prompts of another
kind ("Be honest. ..."), where the contrary is preferred: how much of the first round's taste is left after it, on
prompts of the first kind, and how much of the second was learned. Writes benchmarks/results/loop.json, a scene each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from speed.calibrate import about

from plaudit import files
from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.evaluation.metrics import bootstrap, outcomes
from plaudit.evaluation.perception import Band
from plaudit.feedback import answering, panel, privacy, schema
from plaudit.feedback.panel import Impression
from plaudit.feedback.projects import Projects
from plaudit.feedback.store import Store
from plaudit.loop.drawing import Row, draw, openers, views_of
from plaudit.models.load import Model, load_model
from plaudit.randomness import rng
from plaudit.reward.rubric import as_text
from plaudit.tensors import SamplingParams
from plaudit.training import machine
from plaudit.types import Message, Prompt, prompt_to_json

PLACE = Path(__file__).parent / "results" / "loop.json"
PROGRAM = "import sys; from plaudit.cli import main; sys.exit(main())"
NAME, NEW, AT_ONCE = "loop", 24, 30
TURNS = 3
"""The round from which on taste is its contrary, in the scene `drift`."""
POISON = 0.2
JUDGES = ("judge-1", "judge-2", "judge-3")
OTHER_KIND = "Be honest. "
ONLINE: dict[str, Any] = {"mode": "online", "stop": {"rounds": 2, "patience": 2}, "collect": {"enough": 240}}
SCENES: dict[str, dict[str, Any]] = {
    "http": {"stop": {"rounds": 3, "patience": 3}},
    "at once": {"stop": {"rounds": 1}, "collect": {"enough": 1080, "prompts": 120}},
    "drift": {
        "stop": {"rounds": 5, "patience": 5},
        "gate": {"judges": "people", "raters": list(JUDGES), "overlap": 3, "prompts": 160},
    },
    "poison": {"stop": {"rounds": 2, "patience": 2}},
    "online": ONLINE,
    "online, no replay": ONLINE | {"online": {"replay": 0}},
}
TOGETHER = {"http": ["http", "at once"], "online": ["online", "online, no replay"]}
"""Scenes that are held against each other."""
SETTINGS: dict[str, Any] = {
    "name": NAME,
    "max_new_tokens": NEW,
    "sources": {"served": 1.0},
    "collect": {"enough": 360, "prompts": 120},
    "gate": {"prompts": 160},
}


@dataclass
class Crowd:
    """Seven raters who read what a server says, and three who judge at the gate."""

    model: Model
    scene: str
    seed: int = 0
    band: Band | None = None
    asked: int = 0
    raters: list[panel.Rater] = field(init=False)
    judges: list[panel.Rater] = field(init=False)

    def __post_init__(self) -> None:
        self.raters = panel.training_raters(self.seed)
        self.judges = panel.judging_raters(self.seed)

    def turned(self, round: int) -> bool:
        """Whether the contrary is preferred by now."""
        first = {"drift": TURNS, "online": 2}.get(self.scene.split(",")[0])
        return first is not None and round >= first

    def prompts(self, prompts: list[Prompt], round: int) -> list[Prompt]:
        """What is asked in a round."""
        return of_other_kind(prompts) if self.scene.startswith("online") and round > 1 else prompts

    def impressions(self, rows: list[Row]) -> list[Impression]:
        views = views_of(self.model, rows, "answers", seed=self.seed, console=Console(quiet=True))
        assert self.band is not None
        seen = zip(rows, views.relevance(self.band), views.fluency(self.band), strict=True)
        return [Impression(row["completion"], float(r), float(f)) for row, r, f in seen]

    def chosen(self, pair: list[Impression], *, round: int, number: int) -> int | None:
        """Which of two a rater prefers; None where they see no difference."""
        rater = self.raters[number % len(self.raters)]
        said = rater.compare(pair[0], pair[1], key=(round, number))
        if said is None or said.choice not in (0, 1):
            return None
        turned = self.turned(round)
        if self.scene == "poison" and rng(self.seed, "poison", round, number).random() < POISON:
            turned = not turned
        return 1 - int(said.choice) if turned else int(said.choice)

    def decide(self, store: Path, round: int) -> None:
        """What the three who judge nothing else say at the gate, each of every pair that they are given."""
        with Store.open(store) as opened:
            projects = Projects(opened)
            project = next(one for one in reversed(projects.all()) if one.name.startswith("Gate"))
            for judge, name in zip(self.judges, JUDGES, strict=True):
                with schema.writing(opened.engine) as connection:
                    privacy.ensure(connection, name)
                    privacy.key_of(connection, name)
                while turns := answering.upcoming(projects, project, name, time.time(), count=AT_ONCE):
                    rows = [self.row(t.item.prompt, text) for t in turns for text in t.item.completions]
                    overall = panel.overall_scores([judge], self.impressions(rows))[0]
                    for place, turn in enumerate(turns):
                        gap = float(overall[2 * place] - overall[2 * place + 1])
                        better = "tie" if abs(gap) < panel.TIE_BELOW else int((gap < 0) != self.turned(round))
                        answering.judge(
                            projects, project.id, name, turn.item.id, {"choice": better},
                            event=f"{name} {turn.item.id}", assignment=turn.assignment,
                        )  # fmt: skip

    def row(self, prompt: Prompt, text: str) -> Row:
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(text) or [next(iter(tokenizer.eos_ids))]
        return {
            "prompt": prompt_to_json(prompt),
            "completion": text,
            "prompt_ids": list(tokenizer.render(prompt)),
            "completion_ids": list(ids),
        }


def of_other_kind(prompts: list[Prompt]) -> list[Prompt]:
    return [(Message("user", OTHER_KIND + as_text(prompt)),) for prompt in prompts]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(*words: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words], stdout=out, stderr=out, start_new_session=True
        )


class Client:
    """A chat client that asks for two answers and says which is better."""

    def __init__(self, url: str, key: str, crowd: Crowd) -> None:
        self.http = httpx2.Client(
            base_url=f"{url}/v1/", headers={"Authorization": f"Bearer {key}"}, timeout=300, trust_env=False
        )
        self.crowd = crowd

    def judge(self, prompts: list[Prompt], round: int, wanted: int) -> int:
        """So many choices."""
        given = 0
        while given < wanted:
            part = [prompts[(self.crowd.asked + i) % len(prompts)] for i in range(AT_ONCE)]
            rows, answers = list[Row](), list[dict[str, Any]]()
            for prompt in part:
                answer = self.ask(prompt)
                answers.append(answer)
                for choice in answer["choices"]:
                    rows.append(self.crowd.row(prompt, choice["message"]["content"]))
            seen = self.crowd.impressions(rows)
            for place, answer in enumerate(answers):
                number = self.crowd.asked
                self.crowd.asked += 1
                pair = seen[2 * place : 2 * place + 2]
                chosen = self.crowd.chosen(pair, round=round, number=number)
                if chosen is not None and pair[0].text != pair[1].text and given < wanted:
                    body = {"token": answer["feedback"]["token"], "chosen": chosen}
                    self.http.post("feedback", json=body).raise_for_status()
                    given += 1
        return given

    def ask(self, prompt: Prompt) -> dict[str, Any]:
        body = {
            "model": NAME,
            "messages": prompt_to_json(prompt),
            "n": 2,
            "max_tokens": NEW,
            "temperature": 1.0,
        }
        found: dict[str, Any] = self.http.post("chat/completions", json=body).raise_for_status().json()
        return found


def play(scene: str, place: Path, model_name: str, overrides: list[str]) -> dict[str, Any]:
    """One scene to its end: the loop's summary."""
    place.mkdir(parents=True)
    config, out, store = place / "loop.yaml", place / "run", place / "feedback.db"
    tree = SETTINGS | SCENES[scene] | {"model": model_name, "store": str(store)}
    # Online, all three work at once, and threads that wait for each other's cores lose far more than they win.
    threads = 1 if scene.startswith("online") else 0
    config.write_text(json.dumps({"recipe": "loop"} | tree | {"threads": threads}))
    device, dtype = machine.prepare("auto", threads)
    crowd = Crowd(load_model(model_name, dtype, device), scene)
    train = openers()["train"]
    crowd.band = band_of(crowd.model, train)
    with Store.open(store) as opened:
        Accounts(opened.engine).create("shop", "admin", os.urandom(16).hex())
        key = Keys(opened.engine).create("shop", ["answer"])[1]

    loop = started("loop", "run", str(config), "--out", str(out), *overrides, log=place / "loop.txt")
    while not (out / "waiting.json").exists():
        if loop.poll() is not None:
            raise SystemExit((place / "loop.txt").read_text()[-800:])
        time.sleep(0.5)
    port = free_port()
    server = started(
        "serve",
        f"store={store}",
        f"port={port}",
        "requests_per_minute=1e9",
        "tokens_per_minute=1e12",
        f"--threads={threads}",
        log=place / "serve.txt",
    )
    client = Client(f"http://127.0.0.1:{port}", key, crowd)
    try:
        wait_ready(port)
        while loop.poll() is None:
            if (waiting := awaited(out)) is None:
                time.sleep(0.5)
                continue
            round, left = waiting["round"], waiting["want"] - waiting["have"]
            print(f"{scene}: round {round}, {left} {waiting['for']}", flush=True)
            if waiting["for"] == "judgements":
                client.judge(crowd.prompts(train, round), round, left)
                while awaited(out, waiting["for"], round) and loop.poll() is None:
                    time.sleep(0.5)
            else:
                crowd.decide(store, round)
                time.sleep(0.5)
    finally:
        for process in (server, loop):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    if scene.startswith("online"):
        found["second kind"] = learned_second(crowd, out)
    return found


def awaited(out: Path, what: str | None = None, round: int | None = None) -> dict[str, Any] | None:
    """What the loop waits for, None where it works, or waits for something else."""
    try:
        found: dict[str, Any] = json.loads((out / "waiting.json").read_text())
    except (OSError, ValueError):
        return None
    return found if what in (None, found["for"]) and round in (None, found["round"]) else None


def learned_second(crowd: Crowd, out: Path) -> dict[str, Any]:
    """Of held-out prompts of the second round's kind, how often its candidate is preferred to the start by the gate's
    three with the contrary taste, and the 95 % interval."""
    prompts, console = of_other_kind(openers()["heldout"]), Console(quiet=True)
    device, dtype = machine.prepare("auto")
    models = (load_model(str(out / "rounds" / "2" / "policy" / "model"), dtype, device), crowd.model)
    params = SamplingParams(max_new_tokens=NEW)
    overall = [
        panel.overall_scores(
            crowd.judges, crowd.impressions(draw(model, prompts, 1, params, (0, "second", place), console=console))
        )
        for place, model in enumerate(models)
    ]  # fmt: skip
    won = [
        outcomes(theirs.tolist(), ours.tolist(), panel.TIE_BELOW)
        for ours, theirs in zip(*overall, strict=True)
    ]
    rates = [float(sum(judges) / len(judges)) for judges in zip(*won, strict=True)]
    return {"rate": sum(rates) / len(rates), "interval": list(bootstrap(rates, seed=0))}


def band_of(model: Model, prompts: list[Prompt]) -> Band:
    """What is relevant and fluent to whom the start is all that they know."""
    params = SamplingParams(max_new_tokens=NEW)
    console = Console(quiet=True)
    rows = draw(model, prompts[:60], 2, params, (0, "band"), console=console)
    return Band.of(views_of(model, rows, "the start", seed=0, console=console))


def wait_ready(port: int) -> None:
    ends = time.monotonic() + 180
    while time.monotonic() < ends:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the server does not start")


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a scene."""
    rounds = [
        {
            name: one[name]
            for name in (
                "round", "judgements", "accuracy", "drift", "rates", "intervals", "bounds", "prompts", "published",
                "why", "kl_per_token", "length_controlled",
            )
        }
        for one in summary["rounds"]
    ]  # fmt: skip
    second = {"second kind": summary["second kind"]} if "second kind" in summary else {}
    minutes = summary["seconds"]["total"] / 60
    return {"rounds": rounds, "champion": summary["champion"], "minutes": minutes} | second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scene", choices=["http", "drift", "poison", "online"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, help="where the runs stay; else they go")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the loop")
    given = parser.parse_args()
    scenes = TOGETHER.get(given.scene, [given.scene])
    with tempfile.TemporaryDirectory(prefix="plaudit-loop-") as beside:
        base = given.out or Path(beside)
        found = {
            scene: told(
                play(scene, base / scene.replace(",", "").replace(" ", "-"), given.model, given.settings)
            )
            for scene in scenes
        }
    kept = json.loads(PLACE.read_text())["scenes"] if PLACE.exists() else {}
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    files.write_json(PLACE, {"scenes": kept | found, "date": when, "machine": about()})
    for scene, one in found.items():
        for row in one["rounds"]:
            rates = ", ".join(f"{rate:.0%} against {name}" for name, rate in row["rates"].items())
            print(
                f"{scene}: round {row['round']}: {rates}; {'published' if row['published'] else row['why']}"
            )
        if "second kind" in one:
            print(f"{scene}: of the second kind {one['second kind']['rate']:.0%}")


if __name__ == "__main__":
    main()
