"""Passwords and tokens: how they are made, and what of them is stored."""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from plaudit.types import UserError

LEAST, MOST = 10, 512
"""Characters of a password. The most keeps a request from hashing megabytes."""


def new_token() -> str:
    """256 random bits, fit for an address."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored of a token. No salt and no slow hash: nobody guesses 256 bits."""
    return hashlib.sha256(token.encode()).hexdigest()


def derived(token: str, purpose: str) -> str:
    """Another secret that whoever holds the token can work out, and nobody else."""
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def equal(one: str, other: str) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


@functools.cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()  # argon2id, as RFC 9106 recommends it where memory is dear


def hash_password(password: str) -> str:
    """argon2id, its salt and costs in it. UserError for one that is too short, or too long."""
    if not LEAST <= len(password) <= MOST:
        raise UserError(f"a password has {LEAST} to {MOST} characters, not {len(password)}")
    return _hasher().hash(password)


def fits(password: str, stored: str | None) -> bool:
    """Whether it is the password. As slow where there is none stored, so that the time does not tell who exists."""
    try:
        return _hasher().verify(stored or _nobodys(), password[:MOST]) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(stored: str) -> bool:
    """Whether it was hashed at lower costs than are usual now."""
    return _hasher().check_needs_rehash(stored)


@functools.cache
def _nobodys() -> str:
    return _hasher().hash(new_token())
