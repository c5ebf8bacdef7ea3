"""Which algorithm for my feedback? PPO, RLOO, GRPO, DPO, KTO and ILQL on the quickstart's task, side by side.

    python benchmarks/algorithms.py --quickstart runs/benchmark --runs runs/algorithms 0

All learn from the first round of a quickstart: the same prompts, the same samples, the same panel's judgements. All get
the same wall-clock time, `--budget` seconds (180: what the quickstart's reward model and PPO take on two cores); PPO,
RLOO, GRPO and rejection sampling pay the reward model out of it. A few trial steps, or the first epoch, say how many
steps, or epochs, come nearest to the budget; the seconds that they took are recorded. All adapt the same blocks with
the same rank, and are measured as the quickstart measures its own: on held-out prompts, by judges who trained nobody.

--quickstart holds seed-N of each seed (as benchmarks/quickstart.py leaves them) or is itself the run of the one seed; a
run that is missing is begun and taken as far as its reward model. What is finished is read, so that the study goes on
where it was stopped; a training that was stopped begins again, since its seconds count. About 45 minutes a seed on two
cores with nothing else running. Seeds that are recorded stay beside those that are asked for;
without any, the table and the chart are drawn of what is recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import algorithms_shown
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plaudit import config as configs
from plaudit import files
from plaudit.data.episodes import rewards_of
from plaudit.data.formats import read_records, write_records
from plaudit.data.judged import prompt_key
from plaudit.feedback.store import Store
from plaudit.loop import measure, quickstart, stages
from plaudit.loop.rounds import Journal
from plaudit.loop.stages import Stage
from plaudit.models.load import load_model
from plaudit.models.q_heads import Steering, load_heads
from plaudit.recipes import dpo, grpo, ilql, kto, ppo, reinforce, rejection
from plaudit.reward.model import load_reward_model
from plaudit.training import machine, rundir
from plaudit.types import Preference, Rating, UserError

HERE = Path(__file__).parent
ROOT = HERE.parent
Result = dict[str, Any]
ONLINE: dict[str, Any] = {"ppo": ppo, "rloo": reinforce, "grpo": grpo, "rejection": rejection}
OFFLINE: dict[str, Any] = {"dpo": dpo, "kto": kto, "ilql": ilql}
TRIAL = 3
"""Steps that say how long a step takes."""
OFFLINE_RATE = 2e-4
"""Some dozens of steps on an adapter; the configs' 5e-5 of DPO and KTO is for runs of hundreds."""
POLYAK = 0.05
"""ILQL's slow heads, which steer, must arrive within as many steps; the config's 0.005 is for thousands."""
STEER_BETA = 4.0


# 1. What all of them learn from ----------------------------------------------------------------------------


def first_round(directory: Path, seed: int, store: Store, console: Console) -> Stage:
    """The first round of a quickstart, taken as far as its reward model."""
    recipe, tree = rundir.read_config(directory)
    config = configs.parse(quickstart.Config, tree, str(directory / "config.yaml"))
    if (recipe, config.seed, config.raters) != ("quickstart", seed, "panel"):
        raise UserError(f"is no quickstart of seed {seed} that the panel judged", where=str(directory))
    device, dtype = machine.prepare(config.precision, config.threads)
    model = load_model(config.model, dtype, device)
    splits = quickstart.write_prompts(config, directory)
    stage = Stage(config, directory, 1, model, store, splits, console, input)
    journal = Journal(directory)
    if journal.done(1, "reward") is None:
        rundir.reopen(directory)
        quickstart.take_round(stage, journal, last="reward")
    return stage


def place_of(given: Path, seed: int) -> Path:
    """The quickstart's directory, begun unless it was."""
    directory = given if (given / "config.yaml").exists() else given / f"seed-{seed}"
    if not directory.exists():
        config = quickstart.Config(seed=seed)
        machine.prepare(config.precision, config.threads)  # which the run's record of its machine tells
        rundir.start(directory, "quickstart", config)
    return directory


def write_feedback(stage: Stage, place: Path) -> Result:
    """The judgements in the parts that recipes take -> comparisons.jsonl, means.jsonl; counts, and the median rating.

    means.jsonl: of each completion one rating, whose reward is the mean of the rewards that all judgements of it are
    worth to ILQL. Its squared error has the same minimum as on each judgement alone, a sixth as many episodes.
    """
    records = read_records(stage.place / "feedback.jsonl")
    ratings = [record.overall for record in records if isinstance(record, Rating)]
    comparisons = [record for record in records if isinstance(record, Preference)]
    rewards: dict[tuple[str, str], list[float]] = {}
    prompts = {prompt_key(record.prompt): record.prompt for record in records}
    for record in records:
        for text, reward in rewards_of(record, 0.5, 2.0, 0.0):
            rewards.setdefault((prompt_key(record.prompt), text), []).append(reward)
    means = [
        Rating(prompts[key], text, {"overall": (statistics.fmean(found) + 1) / 2})
        for (key, text), found in rewards.items()
    ]
    place.mkdir(parents=True, exist_ok=True)
    write_records(comparisons, place / "comparisons.jsonl")
    write_records(means, place / "means.jsonl")
    return {
        "judgements": len(records),
        "comparisons": len(comparisons),
        "completions": len(means),
        "median_rating": statistics.median(ratings),
    }


# 2. Training -----------------------------------------------------------------------------------------------


def settings(name: str, stage: Stage, place: Path, length: int, median: float) -> configs.Config:
    """configs/NAME.yaml with the quickstart's model, adapter and lengths. length: steps, or epochs of an offline one.

    The online ones have the quickstart's learning rate, entropy bonus, KL price and guard, and as many completions a
    step as its PPO, in groups of their own config's size; PPO is the quickstart's.
    """
    mine = stages.ppo_config(stage)
    if name == "ppo":
        return mine.model_copy(update={"steps": length})
    tree, own = configs.read_yaml(ROOT / "configs" / f"{name}.yaml"), mine.model_dump()
    del tree["recipe"]
    tree |= {key: own[key] for key in ("model", "seed", "precision", "threads")}
    tree["adapter"] |= {key: own["adapter"][key] for key in tree["adapter"]}
    if name in ONLINE:
        tree |= {key: own[key] for key in ("prompts", "reward", "max_new_tokens", "missing_eos_penalty")}
        tree |= {key: own[key] for key in ("learning_rate", "stop", "checkpoint_every")} | {"steps": length}
        if "kl" in tree:
            tree["kl"] |= {key: own["kl"][key] for key in ("coef", "target", "horizon")}
            tree["entropy_coef"] = own["entropy_coef"]
            samples = own["prompts_per_step"] * own["samples_per_prompt"]
            tree["prompts_per_step"] = max(1, samples // tree["samples_per_prompt"])
        online: configs.Config = configs.parse(ONLINE[name].Config, tree, name)
        return online
    data = {"dpo": place / "comparisons.jsonl", "kto": stage.place / "feedback.jsonl"}
    tree["data"] = [str(data.get(name, place / "means.jsonl"))]
    tree |= {"samples": [str(stage.place / "samples.jsonl")], "learning_rate": OFFLINE_RATE, "epochs": length}
    if name == "kto":
        tree["threshold"] = median  # good is what is better than usual, or most completions are
    if name == "ilql":
        tree["polyak"] = POLYAK
    offline: configs.Config = configs.parse(OFFLINE[name].Config, tree, name)
    return offline


def train(name: str, stage: Stage, directory: Path, length: int, median: float) -> Result:
    """A recipe's run from its first step to the exported model, and what it took."""
    config = settings(name, stage, directory.parent, length, median)
    recipe = "reinforce" if name == "rloo" else name
    if directory.exists():
        shutil.rmtree(directory)
    rundir.start(directory, recipe, config)
    stage.console.print(f"[bold]{directory.name}[/] {length} {'steps' if name in ONLINE else 'epochs'}")
    began = time.monotonic()
    found = (ONLINE | OFFLINE)[name].run(config, directory, model=stage.model)
    seconds = time.monotonic() - began
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return {
        "seconds": round(seconds, 1),
        "seconds_a_step": pace(directory),
        "steps": found["steps"],
        "length": length,
        "stopped": found.get("stopped"),
        "rate": config.model_dump()["learning_rate"],
    }


def pace(directory: Path) -> float | None:
    """Seconds from one step's end to the next, on average, as the run's TensorBoard log has them; None of one step."""
    log = EventAccumulator(str(directory / "tensorboard"))
    log.Reload()
    times = [event.wall_time for event in log.Scalars("learning_rate")]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def trial(name: str, stage: Stage, directory: Path, median: float) -> Result:
    """A few steps of an online recipe, of which only the time is kept."""
    found = train(name, stage, directory, TRIAL, median)
    shutil.rmtree(directory)
    return found


def length_for(seconds: float, tried: Result) -> int:
    """As many steps, or epochs, as come nearest to so many seconds, from the time that a shorter run took.

    What is no step (the reference's pass, the export) is taken once, however long the run.
    """
    step: float | None = tried["seconds_a_step"]
    steps: float = tried["seconds"] if step is None else step * tried["steps"]
    once, each = tried["seconds"] - steps, steps / tried["length"]
    return max(1, int((seconds - once) / each + 0.5))


# 3. Measuring ----------------------------------------------------------------------------------------------


def measured(name: str, stage: Stage, directory: Path) -> Result:
    """The exported model, ILQL's with its steering, against the start."""
    trunk = stage.model.trunk
    model = load_model(str(directory / "model"), trunk.dtype, trunk.device)
    steer = Steering(load_heads(directory, model), STEER_BETA) if name == "ilql" else None
    rows = stages.draw(stage, stage.splits["heldout"], 1, "after", model=model, steer=steer)
    files.write_rows(directory / "evaluation.jsonl", rows)
    return compared(stage, rows, measure.kl_per_token(model if steer is None else None, stage.model, rows))


def best_of_4(stage: Stage) -> Result:
    """The start's best of four by the reward model. Its KL is at most log n - (n - 1) / n nats a completion (Beirami et
    al. 2024, theorem 1)."""
    scorer = load_reward_model(stage.place / "reward" / "model", stage.model)
    rows, n = measure.best(measure.start_rows(stage), scorer), measure.CANDIDATES
    tokens = statistics.fmean(len(row["completion_ids"]) for row in rows)
    return compared(stage, rows, (math.log(n) - (n - 1) / n) / tokens)


def compared(stage: Stage, after: list[dict[str, Any]], kl: float) -> Result:
    scorer = load_reward_model(stage.place / "reward" / "model", stage.model)
    before = measure.start_rows(stage)[:: measure.CANDIDATES + 1]
    judged = measure.judge(stage, {"before": before, "after": after}, scorer)
    policy, wins = measure.against_start(stage, judged, kl=kl)
    return {"policy": policy, "wins": [round(won, 4) for won in wins]}


# 4. The study ----------------------------------------------------------------------------------------------


def study(stage: Stage, place: Path, budget: float) -> list[Result]:
    """One row an algorithm; what the journal in `place` has is read."""
    journal = Journal(place)
    do = partial(journal.do, 1)
    entries = Journal(stage.directory).entries
    fit = next(e["seconds"] for e in entries if (e["round"], e["step"]) == (1, "reward"))
    heard = do("feedback", partial(write_feedback, stage, place))
    median = heard["median_rating"]
    rows = [{"name": "best of 4", "taken": "", "reward_seconds": fit, "rate": None, "seconds": 0.0}]
    rows[0] |= do("best of 4", partial(best_of_4, stage))

    def add(name: str, shown: str, ran: Result, reward: float) -> None:
        label = f"{name}-{ran['length']}"
        said = do(f"{label}: measured", partial(measured, name, stage, place / label))
        unit = "step" if name in ONLINE else "epoch"
        count = ran["steps"] if name in ONLINE else ran["length"]
        taken = f"{count} {unit}{'s' * (count != 1)}" + ", stopped by itself" * (ran["stopped"] is not None)
        row = {"name": shown, "taken": taken, "reward_seconds": reward}
        rows.append(row | {key: ran[key] for key in ("rate", "seconds", "stopped")} | said)

    for name in ONLINE:
        tried = do(f"{name}: trial", partial(trial, name, stage, place / f"{name}-trial", median))
        length = length_for(budget - fit, tried)
        label = f"{name}-{length}"
        ran = do(label, partial(train, name, stage, place / label, length, median))
        add(name, name, ran, fit)
    for name in OFFLINE:
        label = f"{name}-1"
        once = do(label, partial(train, name, stage, place / label, 1, median))
        length = length_for(budget, once)
        add(name, f"{name}, one epoch", once, 0.0)
        if length > 1:
            label = f"{name}-{length}"
            once = do(label, partial(train, name, stage, place / label, length, median))
        add(name, name, once, 0.0)
    seed, who = stage.config.seed, machine.record()
    about = {"seed": seed, "budget": budget, "feedback": heard, "machine": who}
    return [about | row for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*")
    parser.add_argument("--quickstart", type=Path, default=Path("runs/benchmark"), help="see above")
    parser.add_argument("--runs", type=Path, default=Path("runs/algorithms"), help="where trainings go")
    parser.add_argument("--budget", type=float, default=180.0, help="seconds of training (180)")
    parser.add_argument("--record", type=Path, default=HERE / "algorithms.json")
    parser.add_argument("--figure", type=Path, default=Path("runs/algorithms.html"), help="the chart to draw")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "algorithms.png")
    given = parser.parse_args(arguments)
    console, rows = Console(stderr=True), list[Result]()
    if given.record.exists():
        rows = json.loads(given.record.read_text(encoding="utf-8"))
    for seed in given.seeds:
        directory = place_of(given.quickstart, seed)
        place = given.runs / f"seed-{seed}-{given.budget:g}s"
        place.mkdir(parents=True, exist_ok=True)
        with rundir.alone(directory), rundir.alone(place), Store.open(directory / "feedback.db") as store:
            found = study(first_round(directory, seed, store, console), place, given.budget)
        rows = [row for row in rows if row["seed"] != seed] + found
        files.write_text(given.record, json.dumps(rows) + "\n")
    if not rows:
        parser.error(f"{given.record} holds nothing yet: name a seed")
    algorithms_shown.draw(rows, given.figure, given.picture)
    print(algorithms_shown.table(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
