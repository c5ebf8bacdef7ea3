"""The command line: one function a command, no logic. What is heavy is imported where it is used."""

from __future__ import annotations

import _thread
import contextlib
import errno
import importlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer
import typer.main

from plaudit.types import UserError

if TYPE_CHECKING:
    from plaudit.feedback.store import Store

RECIPES = {
    "sft": "plaudit.recipes.sft",
    "reward_model": "plaudit.recipes.reward_model",
    "ppo": "plaudit.recipes.ppo",
    "reinforce": "plaudit.recipes.reinforce",
    "grpo": "plaudit.recipes.grpo",
    "rejection": "plaudit.recipes.rejection",
    "online_dpo": "plaudit.recipes.online_dpo",
    "dpo": "plaudit.recipes.dpo",
    "kto": "plaudit.recipes.kto",
    "ilql": "plaudit.recipes.ilql",
    "bandit": "plaudit.recipes.bandit",
    "evaluate": "plaudit.recipes.evaluate",
}

app = typer.Typer(
    help="From a person's rating to a better language model, and round again.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
feedback = typer.Typer(help="What people said: bring it in, take it out, and measure it.")
app.add_typer(feedback, name="feedback")
release = typer.Typer(help="Which models answer under which name: publish them, share requests out, go back.")
app.add_typer(release, name="release")
keys = typer.Typer(help="API keys of a store: for the served model and the studio's HTTP API.")
app.add_typer(keys, name="key")
loop = typer.Typer(help="Round after round from judgements to a better published model.")
app.add_typer(loop, name="loop")

SHELL = "command line"
"""Who has done what was asked for here, as the audit log names them."""
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the others.")
]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float64.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: one a core.")]
Seed = Annotated[int, typer.Option(help="Everything drawn depends on it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that stands there.")]
StorePath = Annotated[str, typer.Option("--store", help="The store: a SQLite file or a database URL.")]
UpTo = Annotated[int | None, typer.Option(min=0, help="As of this event; default: now.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also PLAUDIT_DEBUG=1).")] = False,  # noqa: ARG001 (main takes it out)
) -> None:
    if version:
        from plaudit import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="A run to rehearse before it starts.")
    ] = None,
    settings: Settings = None,
    memory: Annotated[
        float | None, typer.Option(min=0.001, help="With a config: GB for the run; default: what is free.")
    ] = None,
) -> None:
    """Say what this machine can do, and what is missing; of a config, how much time and memory its run takes.

    Exit status 0 when the quickstart can run, or the config's run fits; else 2."""
    from plaudit import doctor

    if config is not None:
        from plaudit.loop import estimate

        name, _, parsed = _parsed(config, settings or [], recipe=None)
        lines, fits = estimate.examine(name, parsed, memory)
        for line in lines:
            typer.echo(line)
        raise typer.Exit(0 if fits else 2)
    if memory is not None:
        raise UserError("is of a run", where="--memory", fix="name its CONFIG.yaml, too")
    checks = doctor.examine()
    for check in checks:
        typer.echo(doctor.shown(check))
    raise typer.Exit(0 if doctor.fit(checks) else 2)


@app.command()
def quickstart(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The run's directory.")] = Path("runs/quickstart"),
    model: Annotated[str, typer.Option(help="A directory, a hub id, smollm2 or tiny.")] = "smollm2",
    raters: Annotated[str, typer.Option(help="panel (simulated) or me (you judge).")] = "panel",
    seed: Seed = 0,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; default: 2, or 1 with --raters me.")
    ] = None,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Go the whole way round on a real model: sample, judge, learn a reward, improve, measure."""
    from plaudit.loop import quickstart

    with _resumable(out):
        quickstart.command(
            out=out,
            model=model,
            raters=raters,
            seed=seed,
            rounds=rounds,
            overwrite=overwrite,
            threads=threads,
            overrides=settings,
        )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Its `recipe` says what is run.")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory; default: runs/<recipe>.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the recipe that the config names."""
    _start(config, settings or [], out, overwrite, recipe=None)


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the evaluate recipe.")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory; default: runs/evaluate.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare models on the same prompts; the first is the baseline."""
    _start(config, settings or [], out, overwrite, recipe="evaluate")


@app.command()
def resume(run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run.")]) -> None:
    """Go on with a run that was stopped; of a finished run, print the summary."""
    from plaudit import config as configs
    from plaudit.training import machine, rundir

    name, tree = rundir.read_config(run)
    if name == "quickstart":
        from plaudit.loop import quickstart

        with _resumable(run):
            quickstart.resume(run)
        return
    if name == "loop":
        from plaudit.loop import cycle

        with _resumable(run):
            cycle.resume(run)
        return
    recipe = _recipe(name, str(run / "config.yaml"))
    summary = rundir.summary(run)
    if summary is None:
        config = configs.parse(recipe.Config, tree, str(run / "config.yaml"))
        machine.prepare(config.precision, config.threads)
        with rundir.alone(run), _resumable(run):
            rundir.reopen(run)
            summary = recipe.run(config, run)
            rundir.settle(run)
    _print(summary)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A directory, a hub id, smollm2 or tiny.")],
    prompts: Annotated[Path, typer.Option(help='{"prompt": text or messages} a line, or a .txt.')],
    out: Annotated[Path, typer.Option(help="The JSONL to write, one sample a line.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Samples a prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens a sample at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=1e-6, max=1, help="Draw within this share of probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many tokens; 0: all.")] = 0,
    seed: Seed = 0,
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter's directory to sample with.")] = None,
    steer: Annotated[
        Path | None, typer.Option(help="An ilql run, of whose model/ MODEL is: its Q heads steer.")
    ] = None,
    steer_beta: Annotated[float, typer.Option(help="How far --steer goes; 0: not at all.")] = 4.0,
    engine: Annotated[
        Literal["local", "vllm"], typer.Option(help="What draws: our own, or vLLM (plaudit[vllm]).")
    ] = "local",
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Sample completions of a file of prompts."""
    device, dtype = _machine(precision, threads)
    from plaudit.rollout.generate import generate
    from plaudit.tensors import SamplingParams

    params = SamplingParams(max_new_tokens, temperature, top_k, top_p)
    _print(
        generate(
            model,
            prompts,
            out,
            params,
            n=n,
            seed=seed,
            adapter=adapter,
            steer=steer,
            steer_beta=steer_beta,
            engine=engine,
            dtype=dtype,
            device=device,
        )
    )


@app.command()
def score(
    scorer: Annotated[
        str, typer.Argument(help="A reward model's directory, package.module:function, or a scorer's YAML.")
    ],
    input: Annotated[Path, typer.Option(help='{"prompt", "completion", ...} a line.')],
    out: Annotated[Path, typer.Option(help='The JSONL to write: the same lines with "score".')],
    model: Annotated[str | None, typer.Option(help="The base model, where it has moved.")] = None,
    criteria: Annotated[bool, typer.Option("--criteria", help="Write each criterion's number, too.")] = False,
    best: Annotated[
        int | None, typer.Option(min=1, help="Write the so many best of each prompt alone.")
    ] = None,
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Score a file of completions with a reward model, or any other scorer."""
    device, dtype = _machine(precision, threads)
    from plaudit.reward.score import score

    _print(score(scorer, input, out, model=model, criteria=criteria, best=best, dtype=dtype, device=device))


@app.command()
def judge(
    input: Annotated[Path, typer.Argument(help="Answers, pairs of answers, or records of any shape.")],
    judge: Annotated[Path, typer.Option(help="The judge's YAML (kind: judge).")],
    out: Annotated[Path, typer.Option(help="The JSONL to write: one preference or rating a line.")],
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Let a judge model label a file; again goes on where it stopped."""
    device, dtype = _machine(precision, threads)
    from plaudit.reward.label import label
    from plaudit.reward.open import judge_of

    with _resumable_labels(out):
        _print(label(judge_of(str(judge), dtype, device), input, out))


@app.command()
def classify(
    classifier: Annotated[Path, typer.Argument(help="model/ of a bandit run.")],
    input: Annotated[Path, typer.Option(help='{"prompt": text or messages, ...} a line.')],
    out: Annotated[Path, typer.Option(help="The JSONL to write: the same lines with a label as completion.")],
    policy: Annotated[str, typer.Option(help="greedy, epsilon_greedy or softmax.")] = "greedy",
    epsilon: Annotated[float, typer.Option(min=0, max=1, help="epsilon_greedy: how often any label.")] = 0.1,
    temperature: Annotated[float, typer.Option(min=1e-6, help="softmax: values are divided by it.")] = 0.1,
    seed: Seed = 0,
    model: Annotated[str | None, typer.Option(help="The base model, where it has moved.")] = None,
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Choose a label for each text of a file by a classifier's values."""
    device, dtype = _machine(precision, threads)
    from plaudit.rollout.classify import classify

    _print(
        classify(
            classifier,
            input,
            out,
            policy=policy,
            epsilon=epsilon,
            temperature=temperature,
            seed=seed,
            model=model,
            dtype=dtype,
            device=device,
        )
    )


@app.command()
def studio(
    store: StorePath = "feedback.db",
    host: Annotated[str, typer.Option(help="Who may reach it: by default this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8321,
    runs: Annotated[Path, typer.Option(help="Where runs are, whose curves owners see.")] = Path("runs"),
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Processes; 0: one on SQLite, else two a core.")
    ] = 0,
) -> None:
    """Serve the web app in which people judge and owners look."""
    from plaudit.studio.run import run

    run(store, host, port, runs, workers)


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="A directory, a hub id, smollm2 or tiny; left out: what is published."),
    ] = None,
    settings: Settings = None,
    config: Annotated[Path | None, typer.Option(help="A YAML of settings, which KEY=VALUE override.")] = None,
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Answer on an OpenAI-compatible API that captures feedback."""
    from plaudit import config as configs

    if model is not None and re.fullmatch(r"[a-z_]+=.*", model) and not Path(model).exists():  # a setting
        settings, model = [model, *(settings or [])], None
    device, dtype = _machine(precision, threads)
    from plaudit.serving import run as serving

    tree = configs.with_overrides({} if config is None else configs.read_yaml(config), settings or [])
    parsed = configs.parse(serving.Config, tree, "serve" if config is None else str(config))
    serving.run(model, parsed, device, dtype)


@keys.command("create")
def create_key(
    scope: Annotated[
        list[str] | None, typer.Option(help="What it is good for: answer (the default), judge, review, ...")
    ] = None,
    label: Annotated[str, typer.Option(help="What it is for, as the list shows it.")] = "",
    account: Annotated[str | None, typer.Option(help="Whose it is; default: the server's own.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="After which it ends; default: never.")] = None,
    store: StorePath = "feedback.db",
) -> None:
    """Make a key, and print it once."""
    from plaudit.access.keys import Keys
    from plaudit.feedback.store import Store
    from plaudit.serving.run import account_of

    ends = None if days is None else time.time() + 86400 * days
    with Store.open(store) as opened:
        scopes: Any = scope or ["answer"]
        made, secret = Keys(opened.engine).create(
            account or account_of(opened), scopes, label, ends=ends, by=SHELL
        )
    _print({"id": made.id, "key": secret})


@keys.command("list")
def list_keys(store: StorePath = "feedback.db") -> None:
    """All keys: whose, for what, until when. Not the keys themselves, which nobody has kept."""
    from dataclasses import asdict

    from plaudit.access.keys import Keys

    with _existing(store) as opened:
        _print([asdict(key) for key in Keys(opened.engine).of()])


@keys.command("rotate")
def rotate_key(
    id: Annotated[str, typer.Argument(help="As the list shows it.")],
    hours: Annotated[float, typer.Option(min=0, help="For which the old one is still good.")] = 24.0,
    store: StorePath = "feedback.db",
) -> None:
    """Make another key in the place of one, which ends after a while, and print it once."""
    from plaudit.access.keys import Keys

    with _existing(store) as opened:
        made, secret = Keys(opened.engine).rotate(id, by=SHELL, until=time.time() + 3600 * hours)
    _print({"id": made.id, "key": secret})


@keys.command("revoke")
def revoke_key(
    id: Annotated[str, typer.Argument(help="As the list shows it.")],
    store: StorePath = "feedback.db",
) -> None:
    """From now on the key opens nothing."""
    from plaudit.access.keys import Keys

    with _existing(store) as opened:
        Keys(opened.engine).revoke(id, by=SHELL)


@loop.command("run")
def run_loop(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the loop.")],
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The run's directory.")] = Path("runs/loop"),
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Whether to wait for people, or stop and say for whom.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Go round: sample, collect, agree, reward, improve, evaluate, gate, publish, until it is enough."""
    from plaudit import config as configs
    from plaudit.loop import cycle
    from plaudit.loop.settings import Config

    tree = configs.with_overrides(configs.read_yaml(config), settings or [])
    if tree.pop("recipe", "loop") != "loop":
        raise UserError("is no loop's", where=str(config), fix="run it with `plaudit train`")
    with _resumable(out):
        found = cycle.command(configs.parse(Config, tree, str(config)), out, overwrite=overwrite, wait=wait)
    if found is not None:
        _print(found)


@loop.command("status")
def loop_status(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a loop.")],
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Rounds, gains, what it waits for, and what it has cost."""
    from plaudit import files
    from plaudit.loop import status

    if not (run / "status.json").exists():
        raise UserError("is no loop that has begun", where=str(run), fix="name the directory of one")
    found = files.read_json(run / "status.json", "resume the loop")
    if as_json:
        _print(found)
    else:
        typer.echo("\n".join(status.lines(found)))


@loop.command("go-on")
def loop_go_on(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a loop that waits.")],
) -> None:
    """Let a round wait for nobody else: what people have said so far is enough."""
    from plaudit import files
    from plaudit.loop.collecting import GO_ON

    if not (run / "waiting.json").exists():
        raise UserError("waits for nobody", where=str(run))
    files.write_text(run / GO_ON, "")


@loop.command("retract")
def loop_retract(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a loop.")],
    rater: Annotated[str | None, typer.Option(help="All that this rater said.")] = None,
    item: Annotated[str | None, typer.Option(help="All that was said of this item.")] = None,
    source: Annotated[str | None, typer.Option(help="All that came from this source.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which models it touches.")] = False,
) -> None:
    """Take judgements back, and every model that they touched; `plaudit resume` makes these anew."""
    from plaudit.loop import retracting

    given: dict[retracting.What, str | None] = {"rater": rater, "item": item, "source": source}
    chosen = [(what, name) for what, name in given.items() if name is not None]
    if len(chosen) != 1:
        raise UserError("name one of --rater, --item and --source", where="plaudit loop retract")
    ((what, name),) = chosen
    _print(retracting.retract(run, what, name, by=_whoever(), dry=dry_run))


@release.command()
def publish(
    name: Annotated[str, typer.Argument(help="What clients ask for.")],
    models: Annotated[list[str], typer.Argument(help="One model, or several that share the requests.")],
    weight: Annotated[
        list[float] | None, typer.Option(min=0, help="Of each model in turn; else all have the same.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA adapter's directory, of a single model.")
    ] = None,
    upstream: Annotated[str | None, typer.Option(help="The server, up to /v1, that has the models.")] = None,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    store: StorePath = "feedback.db",
) -> None:
    """From now on these models answer under the name; running servers follow within a second."""
    from plaudit.feedback.releases import Releases
    from plaudit.feedback.store import Store
    from plaudit.serving.run import Config, arm_of

    weights = weight or [1.0] * len(models)
    if len(weights) != len(models):
        raise UserError(
            f"{len(weights)} are given for {len(models)} models", where="--weight", fix="one each"
        )
    if adapter is not None and len(models) > 1:
        raise UserError("is of one model", where="--adapter", fix="publish merged models side by side")
    config = Config(adapter=adapter, upstream=upstream)
    arms = [arm_of(model, config, share) for model, share in zip(models, weights, strict=True)]
    with Store.open(store) as opened:
        made = Releases(opened).publish(name, arms, by=_whoever(), note=note)
    _print(_told(made))


@release.command()
def back(
    name: Annotated[str, typer.Argument(help="What clients ask for.")],
    note: Annotated[str, typer.Option(help="Why.")] = "",
    store: StorePath = "feedback.db",
) -> None:
    """What answered before answers again."""
    from plaudit.feedback.releases import Releases

    with _existing(store) as opened:
        made = Releases(opened).roll_back(name, by=_whoever(), note=note)
    _print(_told(made))


@release.command("list")
def list_releases(
    name: Annotated[
        str | None, typer.Argument(help="All that was published under it; left out: what stands.")
    ] = None,
    store: StorePath = "feedback.db",
) -> None:
    """What is published, or all that was."""
    from plaudit.feedback.releases import Releases

    with _existing(store) as opened:
        releases = Releases(opened)
        found = list(releases.newest().values()) if name is None else releases.history(name)
    _print([_told(one) for one in found])


@app.command()
def worker(
    store: StorePath = "feedback.db",
    once: Annotated[bool, typer.Option("--once", help="Stop when nothing is left to do.")] = False,
    precision: Precision = "auto",
    threads: Threads = 0,
) -> None:
    """Compute what the studio asks for: samples, vectors, replies."""
    device, dtype = _machine(precision, threads)
    from plaudit.loop.worker import Worker

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    with _existing(store) as opened:
        Worker(opened, dtype, device, tell).run(once=once)


@feedback.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="Records (docs/records.md): a file, or owner/name on the hub.")],
    store: StorePath = "feedback.db",
    format: Annotated[str, typer.Option(help="The records' shape; auto: by each row's keys.")] = "auto",
    policy_version: Annotated[str | None, typer.Option(help="The model that wrote the completions.")] = None,
) -> None:
    """Bring a file's records into the store; again is harmless."""
    from plaudit.data.formats import read_records
    from plaudit.feedback.store import Store
    from plaudit.feedback.transfer import import_records

    records = read_records(file, format)  # a file at fault makes no store
    with Store.open(store) as opened:
        _print(import_records(opened, records, policy_version=policy_version))


@feedback.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write: .jsonl, .json or .csv, also .gz.")],
    store: StorePath = "feedback.db",
    format: Annotated[str, typer.Option(help="plaudit, or another of docs/records.md.")] = "plaudit",
    up_to: UpTo = None,
    skip_unrepresentable: Annotated[
        bool, typer.Option("--skip-unrepresentable", help="Leave out what the format cannot hold.")
    ] = False,
) -> None:
    """Write the judgements that stand to a file of records."""
    from plaudit.feedback.transfer import export_file

    with _existing(store) as opened:
        _print(export_file(opened, file, format, up_to, skip_unrepresentable=skip_unrepresentable))


@feedback.command()
def agreement(
    store: StorePath = "feedback.db",
    up_to: UpTo = None,
    seed: Seed = 0,
) -> None:
    """Print how far raters agree, as JSON."""
    from plaudit.feedback.agreement import report

    with _existing(store) as opened:
        _print(report(opened, up_to, seed))


@feedback.command()
def behaviour(
    store: StorePath = "feedback.db",
    out: Annotated[
        Path | None, typer.Option(help="The JSONL to write: ratings to be expected, where that is known.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Print how well what people did with answers foretells what they said of them, as JSON."""
    from plaudit import files
    from plaudit.data.formats import to_json
    from plaudit.feedback.implicit import SIGNALS, of_store

    with _existing(store) as opened:
        found, guessed = of_store(opened, seed)
    weights = None
    if found.weights is not None:
        weights = dict(zip(("intercept", *SIGNALS), found.weights, strict=True))
    told = {"answers": found.both, "gain": found.gain, "counts": found.counts, "weights": weights}
    told["error"] = None if found.weights is None else found.error
    if out is not None:
        files.write_rows(out, (to_json(one.rating) for one in guessed))
    _print(told | {"guessed": len(guessed)})


@feedback.command()
def stats(store: StorePath = "feedback.db") -> None:
    """Print what the store holds, as JSON."""
    from plaudit.feedback.transfer import stats

    with _existing(store) as opened:
        _print(stats(opened))


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status (see docs/commands.md). Errors are told in one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("PLAUDIT_DEBUG", "0") not in ("", "0")
    command = typer.main.get_command(app)
    words = [word for word in argv if word != "--debug"]
    try:
        with _no_interrupt_is_lost(), command.make_context("plaudit", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # whoever read our output has heard enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        status, line = _explained(error)
        if debug or status == 1:
            traceback.print_exception(error)
        typer.echo(f"plaudit: {line}", err=True)
        return status
    return 0


USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""UsageError, wherever this version of Typer keeps it."""

OF_THE_PLACE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip
"""System errors whose cause is the user's disk, path or rights."""


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit status and one line that says what, where and how to mend it."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, USAGE):
        what = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
        path = getattr(getattr(error, "ctx", None), "command_path", "plaudit")
        return 2, f"{what[:1].lower()}{what[1:]}; try `{path} --help`"
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, "; ".join(["interrupted", *map(str, error.args)])
    if (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or "DefaultCPUAllocator" in str(error)
    ):
        return (
            2,
            "out of memory; lower micro_batch_tokens, batch_size or max_new_tokens, or choose a smaller model",
        )
    if isinstance(error, OSError) and error.errno in OF_THE_PLACE:
        reason = str(error.strerror or error).lower()
        return 2, str(UserError(reason, where=str(error.filename or ""), fix=_mend(error.errno)))
    if f"(os error {errno.ENOSPC})" in str(error):  # as safetensors says it
        return 2, str(UserError("no space left on device", fix=_mend(errno.ENOSPC)))
    return 1, "this is a bug of Plaudit's; please report it with the lines above"


def _mend(number: int | None) -> str:
    return (
        "free some space" if number in (errno.ENOSPC, errno.EDQUOT) else "check the path and its permissions"
    )


@contextlib.contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Python drops what is raised in a destructor or a weak reference's callback, an interrupt too. One that is dropped
    so comes again a moment later."""
    before, main = sys.unraisablehook, threading.current_thread() is threading.main_thread()

    def dropped(what: Any) -> None:
        if what.exc_type is not KeyboardInterrupt:
            before(what)
            return
        again = threading.Timer(0.01, _thread.interrupt_main)
        again.daemon = True
        again.start()

    if not main:
        yield
        return
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _resumable(directory: Path) -> Iterator[None]:
    """Says how to go on with the run, should it be interrupted in here."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (directory / "config.yaml").exists()
        raise KeyboardInterrupt(*[f"go on with `plaudit resume {directory}`"] * begun) from None


@contextlib.contextmanager
def _resumable_labels(out: Path) -> Iterator[None]:
    """Says that what was answered is kept, where anything was, should it be interrupted in here."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{out} keeps what was answered; give the same command again"
        raise KeyboardInterrupt(*[kept] * out.exists()) from None


def _start(path: Path, settings: list[str], out: Path | None, overwrite: bool, recipe: str | None) -> None:
    """A run of the config's recipe in a new directory, which does not stay where no step could be taken."""
    from plaudit.training import machine, rundir

    name, module, config = _parsed(path, settings, recipe)
    directory = out or Path("runs") / name
    machine.prepare(config.precision, config.threads)
    rundir.start(directory, name, config, overwrite=overwrite)
    with rundir.alone(directory), _resumable(directory), rundir.first_try(directory):
        summary = module.run(config, directory)
    _print(summary)


def _parsed(path: Path, settings: list[str], recipe: str | None) -> tuple[str, Any, Any]:
    """The recipe's name, its module and its config. UserError for another recipe than the one that is given."""
    from plaudit import config as configs

    tree = configs.with_overrides(configs.read_yaml(path), settings)
    name = tree.pop("recipe", recipe)
    if recipe is not None and name != recipe:
        raise UserError(
            f"is of recipe {name}, not {recipe}", where=str(path), fix="run it with `plaudit train`"
        )
    module = _recipe(name, str(path))
    return name, module, configs.parse(module.Config, tree, str(path))


def _recipe(name: object, where: str) -> Any:
    """The recipe's module. UserError for a name that is none."""
    if not isinstance(name, str) or name not in RECIPES:
        if name == "loop":
            raise UserError("is a loop's, not a recipe's", where=where, fix="run it with `plaudit loop run`")
        what = "names no recipe" if name is None else f"unknown recipe {name!r}"
        raise UserError(what, where=where, fix=f"set `recipe` to one of {', '.join(RECIPES)}")
    return importlib.import_module(RECIPES[name])


def _machine(precision: str, threads: int) -> tuple[Any, Any]:
    """Device and dtype. UserError for a precision that there is not."""
    from plaudit.training import machine

    known = get_args(machine.Precision)
    if precision not in known:
        raise UserError(
            f"unknown precision {precision!r}", where="--precision", fix=f"known: {', '.join(known)}"
        )
    return machine.prepare(cast(machine.Precision, precision), threads)


def _existing(store: str) -> Store:
    """The store, which must be there: reading makes none. UserError where it is not."""
    from plaudit.feedback.schema import url_of
    from plaudit.feedback.store import Store

    url = url_of(store)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise UserError(
            "there is no such store",
            where=store,
            fix="name it with --store, or start the studio or an import first",
        )
    return Store.open(store)


def _told(made: Any) -> dict[str, Any]:
    """A release as it is printed."""
    from dataclasses import asdict

    return {name: value for name, value in asdict(made).items() if value not in (None, "")}


def _whoever() -> str:
    """Who gives the command, as the history names them."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody by that number
        return "cli"


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
