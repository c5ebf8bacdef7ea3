"""Roles, and what each of them may do."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal["rater", "reviewer", "admin", "owner"]
Permission = Literal["judge", "review", "manage", "own", "answer"]
ROLES: tuple[Role, ...] = get_args(Role)
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
ALLOWED: dict[Role, frozenset[Permission]] = {
    "rater": frozenset({"judge"}),
    "reviewer": frozenset({"judge", "review"}),
    "admin": frozenset({"judge", "review", "manage", "answer"}),
    "owner": frozenset(PERMISSIONS),
}
"""judge: be given items and answer them. review: see what others said, the figures of quality, and decide where they
disagree. manage: projects, raters, exports, jobs and webhooks. own: accounts of any role, the audit log, and what
cannot be undone (forgetting a rater). answer: ask a served model and give feedback on what it said."""


def may_give(giver: Role, role: Role) -> bool:
    """Whether somebody of the one role may invite, change or close an account of the other: an owner any, an admin
    those below."""
    return giver == "owner" or (giver == "admin" and ROLES.index(role) < ROLES.index("admin"))
