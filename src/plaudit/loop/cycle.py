"""`plaudit loop run`: sample, collect, agree, reward, improve, evaluate, gate, publish, and round again until it is
enough. A round's place for adversarial training is between improve and evaluate."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from plaudit import config as configs
from plaudit import files
from plaudit.data.formats import read_prompts
from plaudit.evaluation.gate import fewest_cases, spent
from plaudit.feedback.store import Store
from plaudit.loop import asking, collecting, contest, learning, publishing, retracting, status, streaming
from plaudit.loop.collecting import Waiting
from plaudit.loop.drawing import Prompts, openers, write_prompts
from plaudit.loop.round import MEND, POLICY, Result, Round, Standing, place_of, rounded, store_of
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config
from plaudit.models.load import find_model, load_model
from plaudit.reward.open import judge_of
from plaudit.reward.rubric import as_text
from plaudit.training import machine, rundir
from plaudit.types import UserError

RECIPE = "loop"
TRANSITIONS: dict[str, Callable[[Round], Result]] = dict(
    zip(
        status.STEPS,
        (
            asking.sample,
            collecting.collect,
            learning.agree,
            learning.reward,
            lambda round: (streaming if round.config.mode == "online" else learning).improve(round),
            contest.evaluate,
            contest.gate,
            publishing.publish,
        ),
        strict=True,
    )
)


def command(
    config: Config, out: Path, *, overwrite: bool = False, wait: bool = True
) -> dict[str, Any] | None:
    """Begin, or go on where a loop of the same settings was stopped. None where it waits for people and `wait` is
    off."""
    if not overwrite and (out / "config.yaml").exists():
        recipe, before = rundir.read_config(out)
        if recipe != RECIPE or configs.parse(Config, before, str(out / "config.yaml")) != config:
            raise UserError(
                "already holds another run", where=str(out), fix="choose another --out or give --overwrite"
            )
        return resume(out, wait=wait)
    check(config)
    machine.prepare(config.precision, config.threads)
    rundir.start(out, RECIPE, config, overwrite=overwrite)
    with rundir.alone(out), rundir.first_try(out):
        return run(config, out, wait=wait)


def resume(directory: Path, *, wait: bool = True) -> dict[str, Any] | None:
    """Go on with a loop; the summary of one that has ended."""
    _, tree = rundir.read_config(directory)
    config = configs.parse(Config, tree, str(directory / "config.yaml"))
    machine.prepare(config.precision, config.threads)
    with rundir.alone(directory):
        retracting.finish(directory, config)
        if (summary := rundir.summary(directory)) is not None:
            return summary
        rundir.check_machine(directory)
        rundir.settle(directory)
        files.sweep(directory)
        return run(config, directory, wait=wait)


def check(config: Config) -> None:
    """UserError for what cannot work, before hours of work."""
    find_model(config.model)
    collecting.check_files(config.data)
    for judge in (
        config.judge,
        config.gate.judges if config.gate.judges not in ("panel", "people") else None,
    ):
        if judge is not None:
            judge_of(judge)
    if (
        config.judge is not None
        and Path(config.gate.judges).exists()
        and same(config.judge, config.gate.judges)
    ):
        raise UserError("is the judge that is learned from", where="gate.judges", fix="name another judge")
    train, heldout, suites = prompts_of(config)
    learned = {as_text(prompt) for prompt in train}
    for name, prompts in {"heldout": heldout, **suites}.items():
        if shared := learned & {as_text(prompt) for prompt in prompts}:
            raise UserError(
                f"{len(shared)} prompts are learned from, too", where=name, fix="take them out of one"
            )
    for name, prompts in suites.items():
        fewest = fewest_cases(config.suites[name].margin, spent(config.gate.alpha, config.stop.rounds))
        if len(prompts) < fewest:
            raise UserError(
                f"has {len(prompts)} cases, of which {fewest} are needed to show anything within its margin",
                where=f"suite {name}", fix="give more cases, a wider margin, or fewer rounds",
            )  # fmt: skip


def same(one: str, other: str) -> bool:
    """Whether two files hold the same."""
    return files.digest(Path(one)) == files.digest(Path(other))


def run(config: Config, directory: Path, *, wait: bool = True) -> dict[str, Any] | None:
    """All rounds, from where the journal ends; each transition is recorded and can be killed."""
    console, journal = Console(stderr=True), Journal(directory)
    device, dtype = machine.prepare(config.precision, config.threads)
    console.print(f"[bold]Loading[/] {config.model}")
    model = load_model(config.model, dtype, device)
    train, heldout, suites = kept_prompts(config, directory)
    start = publishing.arm_of(config, None).version
    with Store.open(store_of(config, directory)) as store:
        for number in range(1, config.stop.rounds + 1):
            if (why := ended(config, journal, number - 1)) is not None:
                break
            round = Round(
                config=config, directory=directory, number=number, model=model, store=store,
                prompts=train, heldout=heldout, suites=suites, console=console, journal=journal, start=start,
                standing=standing_at(config, directory, journal, number, store, start), wait=wait,
                id=identity(config, directory), taken_back=retracting.all_of(directory),
            )  # fmt: skip
            try:
                take(round)
            except Waiting as waiting:
                console.print(f"{waiting}; go on with `plaudit resume {directory}`", soft_wrap=True)
                return None
        why = ended(config, journal, config.stop.rounds) or f"{config.stop.rounds} rounds"
    return close(config, directory, why, start)


def take(round: Round) -> None:
    """The round's transitions in order, from where the journal ends."""
    for name, transition in TRANSITIONS.items():
        status.write(round.config, round.directory, at=(round.number, name))
        round.journal.do(round.number, name, partial(transition, round))
    status.write(round.config, round.directory)


def standing_at(
    config: Config, directory: Path, journal: Journal, number: int, store: Store, start: str
) -> Standing:
    """What the rounds before have come to, and what has been published since by hand; once the round has begun, as it
    was then."""
    before, begun = journal.done(number - 1, "publish"), journal.done(number, "sample")
    if before is None:
        found = Standing(0, start, config.policy.kl_target, config.collect.overlap)
    else:
        found = publishing.follow(before)
    if begun is not None:
        return replace(found, champion=begun["champion"], version=begun["version"])
    return publishing.stand(config, directory, store, found)


def identity(config: Config, directory: Path) -> str:
    """What tells the run from others in a store that is not its own; drawn once."""
    if config.store is None:
        return ""
    path = directory / "identity.json"
    if not path.exists():
        files.write_json(path, {"id": secrets.token_hex(4)})
    return str(files.read_json(path, MEND)["id"])


def ended(config: Config, journal: Journal, last: int) -> str | None:
    """Why no round follows the one that was the last, None where one does."""
    stop, seconds = config.stop, journal.seconds()["total"]
    done = [n for n in range(1, last + 1) if journal.done(n, "publish") is not None]
    if not done:
        return None
    results = {n: journal.done(n, "publish") or {} for n in done}
    newest = journal.done(done[-1], "gate") or {}
    judgements = sum((journal.done(n, "collect") or {})["judgements"] for n in done)
    out = 0
    for n in reversed(done):
        if results[n]["published"]:
            break
        out += 1
    if publishing.reached(stop.target, newest, results[done[-1]]["published"]):
        return f"the target is reached: the win rate over the start is above {stop.target:.0%}"
    if out >= stop.patience:
        return f"{out} candidates in a row were kept out"
    if stop.judgements is not None and judgements >= stop.judgements:
        return f"the budget of {stop.judgements} judgements is spent"
    if stop.hours is not None and seconds >= 3600 * stop.hours:
        return f"the budget of {stop.hours:g} hours is spent"
    if (journal.done(done[-1], "collect") or {})["judgements"] == 0:
        return "nobody had anything new to say"
    return None


def close(config: Config, directory: Path, why: str, start: str) -> dict[str, Any]:
    """The published policy as DIR/model, the report, and the summary last of all."""
    found = status.of(config, directory)
    champion = found["champion"]
    if champion["round"] and not (directory / "model").exists():
        with files.new_directory(directory / "model") as place:
            made = place_of(directory, champion["round"]) / POLICY / "model"
            shutil.copytree(made, place, dirs_exist_ok=True)
    summary = found | {
        "ended": why,
        "seed": config.seed,
        "model": config.model,
        "start": start,
        "peak_rss_gb": rounded(machine.peak_rss_gb()),
        "machine": machine.record(),
    }
    files.write_text(directory / "report.html", status.report(config, summary))
    files.write_json(directory / "summary.json", summary)
    status.write(config, directory, ended=why)
    console = Console(stderr=True)
    console.print(f"[bold]Ended:[/] {why}", soft_wrap=True)
    console.print(f"  read the report      {directory / 'report.html'}", soft_wrap=True)
    where = f"store={store_of(config, directory)}"
    console.print(f"  serve what it made   plaudit serve {where}", highlight=False, soft_wrap=True)
    return summary


def prompts_of(config: Config) -> tuple[Prompts, Prompts, dict[str, Prompts]]:
    """Training and held-out prompts, the config's or the quickstart's openers, and each suite's. UserError where there
    are too few."""
    if config.prompts is not None and config.heldout is not None:
        train, heldout = (
            list(dict.fromkeys(read_prompts(path))) for path in (config.prompts, config.heldout)
        )
    else:
        split = openers()
        train, heldout = split["train"], split["heldout"]
    for name, prompts, least in (("prompts", train, 2), ("heldout", heldout, 10)):
        if len(prompts) < least:
            raise UserError(f"are {len(prompts)}", where=name, fix=f"give at least {least}")
    return train, heldout, {name: read_prompts(suite.prompts) for name, suite in config.suites.items()}


def kept_prompts(config: Config, directory: Path) -> tuple[Prompts, Prompts, dict[str, Prompts]]:
    """As they were when the run began: they are written down then, and read from there."""
    place = directory / "prompts"
    if not (place / "all.json").exists():
        train, heldout, suites = prompts_of(config)
        written = {"train": train, "heldout": heldout} | {
            f"suite-{name}": some for name, some in suites.items()
        }
        for name, prompts in written.items():
            write_prompts(place / f"{name}.jsonl", prompts)
        files.write_json(place / "all.json", {name: len(prompts) for name, prompts in written.items()})
    train, heldout = (read_prompts(place / f"{name}.jsonl") for name in ("train", "heldout"))
    return train, heldout, {name: read_prompts(place / f"suite-{name}.jsonl") for name in config.suites}
