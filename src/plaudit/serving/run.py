"""`plaudit serve`: models behind the API, from settings, until it is interrupted."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import uvicorn
from pydantic import Field, model_validator
from rich.console import Console

from plaudit.access.accounts import Accounts
from plaudit.access.hosts import OPEN, address, is_local, listening
from plaudit.access.keys import Keys
from plaudit.config import Config as Strict
from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.store import Store
from plaudit.models.foreign import Foreign, find_any, load_any
from plaudit.models.load import digest_of, open_adapter
from plaudit.serving.app import make_app
from plaudit.serving.backend import Backend
from plaudit.serving.fleet import Fleet
from plaudit.serving.guarding import open_guard
from plaudit.serving.local import LocalBackend
from plaudit.serving.masking import Masker, names_of
from plaudit.serving.server import Keep, Server, Settings
from plaudit.serving.upstream import UpstreamBackend
from plaudit.types import UserError

ACCOUNT = "server"
"""Whose the first key is, where nobody has an account yet."""


class Config(Strict):
    """The settings of a server."""

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """What clients ask for; None: the last part of the model's name."""
    adapter: Path | None = None
    """A LoRA adapter's directory to answer with, on the model."""
    upstream: str | None = None
    """The address, up to /v1, of a server that answers instead; MODEL is what it calls the model."""
    upstream_key_env: str | None = None
    """The environment variable that holds that server's key."""
    engine: Literal["local", "vllm"] = "local"
    """Our own, or vLLM's server, started beside (plaudit[vllm])."""
    store: str = "feedback.db"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8400
    open: bool = False
    """Whether who has no key may ask; on this machine alone."""
    keep: Keep = "always"
    """Which answers are kept: all but those with `store: false`, with `consent` those with `store: true`, or never."""
    days: Annotated[float, Field(gt=0)] | None = 90.0
    """For how long they are kept; null: for ever. What was judged stays."""
    logprobs: bool = True
    """Whether log-probabilities and tokens are kept with them."""
    regions: Annotated[tuple[str, ...], Field(max_length=50)] = ("US", "GB", "CN")
    """Whose telephone numbers are masked without +country."""
    names: str | None = None
    """A spaCy model that finds people's names, which are masked too."""
    most_tokens: Annotated[int, Field(ge=1)] | None = 1024
    """New tokens an answer at most; null: as the model has room."""
    seconds: Annotated[float, Field(gt=0)] = 600.0
    """Until an answer must be there."""
    requests_per_minute: Annotated[float, Field(gt=0)] = 600.0
    tokens_per_minute: Annotated[float, Field(gt=0)] = 200_000.0
    """Of each key."""
    cache: bool = True
    """Whether answers that must be the same again are not computed again."""
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 32
    max_waiting: Annotated[int, Field(ge=0)] = 256
    """Completions drawn at once, and that may wait beside them before others are told to come later."""
    cache_tokens: Annotated[int, Field(ge=1)] = 65_536
    """Tokens that all completions together may have in memory."""
    guard_before: str | None = None
    guard_after: str | None = None
    """Scorers, as `plaudit score` takes them, of what is said to the model and of what it says."""
    guard_least: float = 0.0
    """What scores below is refused."""
    rewrite_before: str | None = None
    rewrite_after: str | None = None
    """package.module:function, text -> text, for what is said to the model and for what it says."""
    refusal: Annotated[str, Field(min_length=1, max_length=2000)] = "I cannot help with that."
    """What a guard says instead."""
    drain_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a model that is exchanged goes on with what it was asked."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.upstream is not None and (self.adapter is not None or self.engine != "local"):
            raise ValueError("with upstream there is neither an adapter nor an engine here")
        if self.open and not is_local(self.host):
            raise ValueError("open is for this machine alone: set host to 127.0.0.1, or use keys")
        return self


def run(model: str | None, config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Serves the model, and what else is published in the store. UserError for what cannot be."""
    if config.upstream_key_env is not None and not os.environ.get(config.upstream_key_env):
        where, fix = config.upstream_key_env, "export it, or leave upstream_key_env out"
        raise UserError("is not set", where=where, fix=fix)
    masker = Masker(config.regions, None if config.names is None else names_of(config.names))
    guards = [
        open_guard(scorer, config.guard_least, rewrite, dtype, device)
        for scorer, rewrite in (
            (config.guard_before, config.rewrite_before),
            (config.guard_after, config.rewrite_after),
        )
    ]
    # The port first: nothing is published, and no server of vLLM's started, that nobody could ask.
    with listening(config.host, config.port) as taken, Store.open(config.store) as store:
        releases, loaded = Releases(store), dict[Arm, Backend]()
        if model is not None:
            arm = arm_of(model, config)
            loaded[arm] = backend_of(arm, config, device, dtype)  # what cannot be loaded is not published
            releases.publish(config.name or Path(model).name, [arm], by=ACCOUNT, note="plaudit serve")
        elif not releases.newest():
            where, fix = config.store, "name a model: plaudit serve MODEL"
            raise UserError("nothing is published", where=where, fix=fix)

        async def load(arm: Arm) -> Backend:
            if arm in loaded:
                return loaded.pop(arm)
            return await asyncio.to_thread(backend_of, arm, config, device, dtype)

        server = Server(
            store=store,
            fleet=Fleet(load, drain_seconds=config.drain_seconds),
            settings=settings_of(config),
            masker=masker,
            before=guards[0],
            after=guards[1],
            refusal=config.refusal,
        )
        _greet(config, store, sorted(releases.newest()))
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        served = uvicorn.Config(
            make_app(server),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.drain_seconds),
            timeout_keep_alive=75,
        )
        Draining(served, server).run(sockets=[taken])


def _greet(config: Config, store: Store, names: list[str]) -> None:
    """Says where it is, and, to whoever has no key yet, one."""
    console = Console(stderr=True)
    if not config.open and not Keys(store.engine).of():
        key = Keys(store.engine).create(account_of(store), ["answer"], "plaudit serve")[1]
        said = "Nobody has an API key yet. This one may ask, and is not shown again:"
        console.print(f"{said}\n  {key}", highlight=False, soft_wrap=True)
    place = f"{address(config.host, config.port)}/v1"
    console.print(f"Serving {', '.join(names)} at {place} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if not is_local(config.host):
        console.print(OPEN, style="yellow")


class Draining(uvicorn.Server):
    """Takes no more requests from the moment that it is told to end, and finishes those that it has."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self.server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server.draining = True
        await super().shutdown(sockets)


def settings_of(config: Config) -> Settings:
    return Settings(
        most_tokens=config.most_tokens,
        seconds=config.seconds,
        requests=config.requests_per_minute,
        tokens=config.tokens_per_minute,
        keep=config.keep,
        days=config.days,
        logprobs=config.logprobs,
        open=config.open,
        cache=config.cache,
    )


def arm_of(model: str, config: Config, weight: float = 1.0) -> Arm:
    """The model as it stands now, under a version of its own. UserError for one that is not there."""
    if config.upstream is not None:
        return Arm(model, model, weight, upstream=config.upstream)
    place = str(Path(model).resolve()) if Path(model).exists() else model
    adapter = None if config.adapter is None else config.adapter.resolve()
    if adapter is not None and not adapter.is_dir():
        raise UserError("is no directory", where=f"adapter {config.adapter}")
    digest = digest_of(find_any(place), adapter)
    version = f"{Path(model).name}-{digest}"
    return Arm(version, place, weight, adapter=None if adapter is None else str(adapter), digest=digest)


def backend_of(arm: Arm, config: Config, device: torch.device, dtype: torch.dtype) -> Backend:
    """What answers for an arm. UserError where it cannot be loaded."""
    if arm.upstream is not None:
        key = os.environ.get(config.upstream_key_env) if config.upstream_key_env else None
        return UpstreamBackend(
            arm.upstream, arm.model, arm.version, key=key, timeout=config.seconds, logprobs=config.logprobs
        )
    adapter = None if arm.adapter is None else Path(arm.adapter)
    if arm.digest is not None and digest_of(find_any(arm.model), adapter) != arm.digest:
        what = f"has changed since {arm.version} was published"
        raise UserError(what, where=arm.model, fix="publish it again: it is another model")
    if config.engine == "vllm":
        from plaudit.serving.vllm import start

        return start(arm, config.seconds, config.logprobs)
    model = load_any(arm.model, dtype, device)
    if isinstance(model, Foreign):
        raise UserError(
            "is of a family that our own engine does not have", where=arm.model,
            fix="set engine=vllm, or serve it elsewhere and set upstream",
        )  # fmt: skip
    return LocalBackend(
        model,
        arm.version,
        None if adapter is None else open_adapter(adapter, model.trunk),
        max_batch=config.max_batch,
        most_waiting=config.max_waiting,
        cache_tokens=config.cache_tokens,
    )


def account_of(store: Store) -> str:
    """The account of whoever serves from the shell; made where there is none."""
    accounts = Accounts(store.engine)
    if accounts.get(ACCOUNT) is None:
        accounts.create(ACCOUNT, "admin", secrets.token_urlsafe(32))  # nobody logs in as it
    return ACCOUNT
