"""Passwords and tokens."""

from __future__ import annotations

import hashlib

import pytest

from plaudit.access import secrets
from plaudit.types import UserError


def test_a_password_is_known_again_and_no_other() -> None:
    stored = secrets.hash_password("correct horse")
    assert stored.startswith("$argon2id$")
    assert secrets.fits("correct horse", stored)
    assert not secrets.fits("correct horsf", stored)
    assert secrets.hash_password("correct horse") != stored, "each has a salt of its own"
    assert not secrets.is_outdated(stored)


def test_a_hash_of_lower_costs_is_outdated() -> None:
    cheap = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$H5n9kXWlFJ8qyYkO0yNfKhcBGgIBJqcgrhzpZ6dOv1c"
    assert secrets.is_outdated(cheap)


@pytest.mark.parametrize("password", ["", "123456789", "x" * 513])
def test_a_password_of_no_use_is_refused(password: str) -> None:
    with pytest.raises(UserError, match="a password has 10 to 512 characters"):
        secrets.hash_password(password)


def test_nobody_has_no_password_and_a_broken_hash_fits_none() -> None:
    assert not secrets.fits("anything at all", None)
    assert not secrets.fits("anything at all", "no hash")


def test_what_is_stored_of_a_token_is_its_digest() -> None:
    token = secrets.new_token()
    assert len(token) >= 43
    assert token != secrets.new_token()
    assert secrets.digest(token) == hashlib.sha256(token.encode()).hexdigest()


def test_a_derived_secret_is_of_the_token_and_the_purpose() -> None:
    """RFC 4231, test case 2."""
    found = secrets.derived("Jefe", "what do ya want for nothing?")
    assert found == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert secrets.equal(found, found)
    assert not secrets.equal(found, found[:-1] + "4")
