"""Coming in and going out; accounts, invitations, keys and the audit log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response

from plaudit.access import audit
from plaudit.access.accounts import LONGEST_SECONDS, Account, Accounts
from plaudit.access.keys import Key, Keys
from plaudit.access.roles import PERMISSIONS, Role, may_give
from plaudit.feedback import schema
from plaudit.studio import wire
from plaudit.studio.guard import COOKIE, Anybody, Caller, Guard, Manage, Own, csrf_of
from plaudit.types import Missing, UserError

router = APIRouter(prefix="/api/v1", tags=["people"])
Name = Annotated[str, Path(max_length=100)]


def guard_of(request: Request) -> Guard:
    found: Guard = request.app.state.guard
    return found


def accounts_of(request: Request) -> Accounts:
    return guard_of(request).accounts


def keys_of(request: Request) -> Keys:
    return guard_of(request).keys


@contextlib.contextmanager
def _failures_counted(request: Request, *keys: str) -> Iterator[None]:
    """Around what a wrong password makes fail. HTTPException (429) after too many failures of one of the keys."""
    failures = guard_of(request).failures
    if wait := max(failures.wait(key, time.monotonic()) for key in keys):
        raise HTTPException(
            429, "too many failed log-ins; wait a little", {"Retry-After": str(round(wait + 1))}
        )
    try:
        yield
    except UserError:
        if any(failures.take(key, time.monotonic()) > 0 for key in keys):
            raise HTTPException(
                429, "too many failed log-ins; wait a little", {"Retry-After": "30"}
            ) from None
        raise


@router.post("/log-in")
def log_in(request: Request, response: Response, body: wire.LogIn) -> wire.Begun:
    """Sets the cookie. Slow, and after some failures slower."""
    address = request.client.host if request.client else "?"
    with _failures_counted(request, f"address {address}", f"name {body.name.strip()}"):
        token = accounts_of(request).sign_in(body.name, body.password, time.time())
    account = accounts_of(request).signed_in(token, time.time())
    if account is None:  # closed, disabled or under another password just now
        raise HTTPException(401, "log in, or send an API key")
    _set_cookie(request, response, token)
    return wire.Begun(name=account.name, role=account.role, csrf=csrf_of(token))


@router.post("/log-out")
def log_out(request: Request, response: Response, caller: Anybody) -> wire.Said:
    """Ends this log-in."""
    if caller.token is not None:
        accounts_of(request).sign_out(caller.token)
    response.delete_cookie(COOKIE, path="/")
    return wire.Said()


@router.put("/me/password")
def change_password(
    request: Request, response: Response, caller: Anybody, body: wire.NewPassword
) -> wire.Begun:
    """One's own. All log-ins end, and one is begun anew. A key does not do."""
    if caller.token is None:
        raise HTTPException(403, "this needs a log-in, not an API key")
    with _failures_counted(request, f"name {caller.name}"):
        proved = accounts_of(request).proved(caller.name, body.old)
    accounts_of(request).set_password(caller.name, body.new, by=caller.name, proved=proved)
    token = accounts_of(request).sign_in(caller.name, body.new, time.time())
    _set_cookie(request, response, token)
    return wire.Begun(name=caller.name, role=caller.account.role, csrf=csrf_of(token))


@router.get("/me")
def me(caller: Anybody) -> wire.Me:
    """Who asks, and what they may do."""
    return wire.Me(name=caller.name, role=caller.account.role, permissions=sorted(caller.permissions))


@router.post("/invitations", status_code=201)
def invite(request: Request, caller: Manage, body: wire.Invite) -> wire.Invited:
    """A link that makes one account."""
    if not may_give(_gives_as(caller), body.role):
        raise HTTPException(403, f"this needs more rights than to make somebody {body.role}")
    if body.project is not None:
        request.app.state.projects.get(body.project)
    now = time.time()
    seconds = 86400.0 * body.days
    token = accounts_of(request).invite(body.role, now, by=caller.name, project=body.project, seconds=seconds)
    link = str(request.url_for("welcome", token=token))
    return wire.Invited(link=link, role=body.role, ends=now + seconds)


@router.post("/invitations/{token}", status_code=201)
def accept(request: Request, response: Response, token: Name, body: wire.Acceptance) -> wire.Begun:
    """Makes the account that was offered, and logs it in."""
    offered = accounts_of(request).invitation(token, time.time())
    if offered.project is not None:
        request.app.state.projects.check_room(offered.project)  # before there is an account
    account, begun = accounts_of(request).accept(token, body.name, body.password, time.time(), body.identity)
    if offered.project is not None:
        with schema.writing(accounts_of(request).engine) as connection:
            if request.app.state.projects.welcome(offered.project, account.name):
                audit.note(connection, account.name, "join", f"project {offered.project}")
    _set_cookie(request, response, begun)
    return wire.Begun(name=account.name, role=account.role, csrf=csrf_of(begun), project=offered.project)


@router.get("/accounts")
def list_accounts(request: Request, _: Manage) -> list[wire.AccountShown]:
    """By name. Who is behind a name is not among it."""
    return [_shown(account) for account in accounts_of(request).all()]


@router.put("/accounts/{name}/role")
def change_role(request: Request, caller: Manage, name: Name, body: wire.Invite) -> wire.AccountShown:
    """Gives somebody another role."""
    account = _below(request, caller, name)
    if not may_give(_gives_as(caller), body.role):
        raise HTTPException(403, f"this role may not make somebody {body.role}")
    accounts_of(request).change_role(account.name, body.role, by=caller.name)
    return _shown(_must(request, name))


@router.put("/accounts/{name}/disabled")
def disable(request: Request, caller: Manage, name: Name, disabled: bool = True) -> wire.AccountShown:
    """Keeps somebody out, or lets them in again."""
    account = _below(request, caller, name)
    accounts_of(request).disable(account.name, by=caller.name, disabled=disabled)
    return _shown(_must(request, name))


@router.delete("/accounts/{name}")
def close_account(request: Request, caller: Manage, name: Name) -> wire.Said:
    """Takes an account away; what it judged stays."""
    account = _below(request, caller, name)
    accounts_of(request).close(account.name, by=caller.name)
    return wire.Said()


@router.get("/keys")
def list_keys(request: Request, caller: Anybody) -> list[wire.KeyShown]:
    """One's own; an owner sees all."""
    return [_key(key) for key in keys_of(request).of(None if caller.may("own") else caller.name)]


@router.post("/keys", status_code=201)
def create_key(request: Request, caller: Anybody, body: wire.NewKey) -> wire.KeyMade:
    """A key of one's own; its secret is shown this once."""
    if over := [scope for scope in body.scopes if scope in PERMISSIONS and not caller.may(scope)]:
        raise HTTPException(403, f"this needs the right to {', '.join(over)}")
    ends = None if body.days is None else time.time() + 86400.0 * body.days
    if caller.ends is not None:
        ends = caller.ends if ends is None else min(ends, caller.ends)
    key, secret = keys_of(request).create(caller.name, body.scopes, body.label, ends=ends)
    return wire.KeyMade(key=_key(key), secret=secret)


@router.delete("/keys/{id}")
def revoke_key(request: Request, caller: Anybody, id: Name) -> wire.Said:
    """One's own, or, as an owner, anybody's; with a key, those that may do no more than it."""
    mine = {
        key.id
        for key in keys_of(request).of(None if caller.may("own") else caller.name)
        if caller.token is not None or caller.permissions.issuperset(key.scopes)
    }
    if id not in mine:
        raise Missing("key", id)
    keys_of(request).revoke(id, by=caller.name)
    return wire.Said()


@router.get("/audit/check")
def check_audit(request: Request, _: Own) -> wire.Unbroken:
    """Whether every line of the log is as it was written."""
    return wire.Unbroken(broken=audit.check(accounts_of(request).engine))


@router.get("/audit")
def read_audit(
    request: Request, _: Own, before: Annotated[int | None, Query(ge=1, lt=2**31)] = None
) -> list[wire.AuditLine]:
    """The newest hundred, or those before a line."""
    lines = audit.lines(accounts_of(request).engine, before)
    return [
        wire.AuditLine(
            seq=line.seq,
            at=line.at,
            actor=line.actor,
            action=line.action,
            target=line.target,
            detail=dict(line.detail),
        )
        for line in lines
    ]


def _gives_as(caller: Caller) -> Role:
    """As which role somebody hands out others: an owner's key without the right to own, as an admin."""
    return "owner" if caller.may("own") else "admin"


def _set_cookie(request: Request, response: Response, token: str) -> None:
    response.set_cookie(
        COOKIE, token, max_age=round(LONGEST_SECONDS), path="/", httponly=True, samesite="lax",
        secure=request.url.scheme == "https",
    )  # fmt: skip


def _must(request: Request, name: str) -> Account:
    if (account := accounts_of(request).get(name)) is None:
        raise Missing("account", name)
    return account


def _below(request: Request, caller: Caller, name: str) -> Account:
    """An account that the caller's role may change."""
    account = _must(request, name)
    if not may_give(_gives_as(caller), account.role):
        raise HTTPException(403, f"this role may not change a {account.role}")
    return account


def _shown(account: Account) -> wire.AccountShown:
    return wire.AccountShown(
        name=account.name, role=account.role, created_at=account.created_at, disabled=account.disabled
    )


def _key(key: Key) -> wire.KeyShown:
    return wire.KeyShown(
        id=key.id, account=key.account, label=key.label, scopes=list(key.scopes), created_at=key.created_at,
        ends=key.ends,
    )  # fmt: skip
