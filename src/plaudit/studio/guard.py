"""Who is asking, and whether they may: log-ins by cookie, API keys by header, forged requests, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Request

from plaudit.access import secrets
from plaudit.access.accounts import Account, Accounts
from plaudit.access.keys import Keys
from plaudit.access.limits import Limit
from plaudit.access.roles import ALLOWED, Permission

COOKIE, FORGERY = "plaudit", "x-plaudit-csrf"
"""The log-in's cookie, and the header that a page sends with whatever changes something."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. token: of a log-in, None with an API key; ends: when that key does, None: never, or a log-in."""

    account: Account
    permissions: frozenset[Permission]
    token: str | None
    ends: float | None = None

    @property
    def name(self) -> str:
        return self.account.name

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions


class Guard:
    """Of one app. Limits are a caller's (requests) or an address's (log-ins that fail, of which each of so many workers
    lets its share pass, and three at least: two slips keep nobody out)."""

    def __init__(self, accounts: Accounts, keys: Keys, workers: int = 1) -> None:
        self.accounts, self.keys = accounts, keys
        self.requests = Limit(rate=20.0, burst=120.0)
        self.failures = Limit(rate=max(1 / 120, 1 / 30 / workers), burst=max(3.0, 10.0 / workers))

    def caller(self, request: Request) -> Caller | None:
        """None where nobody is logged in. HTTPException 403 for a request that another site may have made."""
        now = time.time()
        if (header := request.headers.get("authorization")) is not None:
            kind, _, sent = header.partition(" ")
            found = self.keys.holder(sent.strip(), now) if kind.lower() == "bearer" else None
            return None if found is None else Caller(found[0], found[1], None, found[2])
        token = request.cookies.get(COOKIE)
        account = None if token is None else self.accounts.signed_in(token, now)
        if token is None or account is None:
            return None
        if request.method not in SAFE and not secrets.equal(request.headers.get(FORGERY, ""), csrf_of(token)):
            raise HTTPException(403, "this request does not come from a page of the studio; load it again")
        return Caller(account, ALLOWED[account.role], token)

    def admit(self, request: Request, permission: Permission | None) -> Caller:
        """Who asks. 401 where nobody is logged in, 403 where they may not, 429 where they ask too often."""
        caller = self.caller(request)
        if caller is None:
            raise HTTPException(401, "log in, or send an API key", {"WWW-Authenticate": "Bearer"})
        if (wait := self.requests.take(caller.name, time.monotonic())) > 0:
            raise HTTPException(
                429, "too many requests; wait a little", {"Retry-After": str(round(wait + 1))}
            )
        if permission is not None and not caller.may(permission):
            raise HTTPException(403, f"this needs the right to {permission}")
        return caller


def csrf_of(token: str) -> str:
    """What pages of this log-in send back; other sites cannot read it."""
    return secrets.derived(token, "csrf")


def needs(permission: Permission | None) -> Callable[[Request], Caller]:
    """A dependency of routes; the permission stands in `needs` of the function, where a test reads it."""

    def admitted(request: Request) -> Caller:
        guard: Guard = request.app.state.guard
        return guard.admit(request, permission)

    holder: Any = admitted
    holder.needs = permission
    return admitted


Anybody = Annotated[Caller, Depends(needs(None))]
Answer = Annotated[Caller, Depends(needs("answer"))]
Judge = Annotated[Caller, Depends(needs("judge"))]
Manage = Annotated[Caller, Depends(needs("manage"))]
Own = Annotated[Caller, Depends(needs("own"))]
Review = Annotated[Caller, Depends(needs("review"))]
"""Who may call a route: whoever holds the right of that name."""
Id = Annotated[str, Path(max_length=100)]
Number = Annotated[int, Path(ge=1, lt=2**31)]
"""What a route's path names."""
