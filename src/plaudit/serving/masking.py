"""Personal data, replaced before anything is stored: e-mail addresses, telephone, card, account and identity numbers,
each by its own check digits where it has them, and names where a model that finds them is installed.

A number that fails its check stays: order numbers and figures are what people write most. What is replaced stands as
its kind in brackets, so that whoever reads or learns from the text knows that something stood there.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, NamedTuple, get_args

import phonenumbers
import regex
from stdnum import iban, luhn
from stdnum.ca import sin
from stdnum.in_ import aadhaar, pan
from stdnum.iso7064 import mod_11_2
from stdnum.us import itin, ssn

from plaudit.types import UserError

Kind = Literal["email", "iban", "id", "card", "phone", "name"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are looked for: where two claim the same place, the first has it."""
Finder = Callable[[str], Iterable[tuple[int, int]]]
"""Where in a text something stands: (start, end)."""

BEGINS, ENDS = r"(?<![A-Za-z\p{N}]|\p{N}[-.])", r"(?![A-Za-z\p{N}]|[-.]\p{N})"
"""Before and after a number that stands for itself; Chinese characters may touch it."""
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""Full-width forms to plain ones, a character each."""
LOCAL = r"(?:(?!\p{Han})[\p{L}\p{N}!#$%&'*+/=?^_`{|}~.-])"
EMAIL = regex.compile(
    rf"(?<!{LOCAL}){LOCAL}{{1,64}}+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?\.){{1,8}}"
    r"(?:xn--[A-Za-z0-9-]{1,59}|[A-Za-z]{2,24})"
)
"""A local part begins where nothing of its kind stands before it, so that a long run of them is read once."""


class Span(NamedTuple):
    start: int
    end: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Number:
    """Numbers of one kind: what they look like, and whether one is real."""

    pattern: regex.Pattern[str]
    real: Callable[[str], bool]

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        for found in self.pattern.finditer(text):
            if self.real(found[0]):
                yield found.span()


def _number(shape: str, real: Callable[[str], bool] = lambda _: True) -> Number:
    return Number(regex.compile(rf"{BEGINS}{shape}{ENDS}"), real)


ISSUERS = (("34 37", (15,)), ("30 36 38 39", (14, 16)), ("4", (13, 16, 19)), ("51 52 53 54 55", (16,)),
           ("22 23 24 25 26 27", (16,)), ("35", (16, 17, 18, 19)), ("60 64 65", (16, 17, 18, 19)),
           ("62 81", (16, 17, 18, 19)), ("50 56 57 58 6", (16, 17, 18, 19)))  # fmt: skip
"""How a card's number begins, and how long it is then (ISO/IEC 7812 as the networks use it)."""
PLACES = (2, 7, 6, 5, 4, 3, 2)
SG = {"S": "JZIHGFEDCBA", "T": "GFEDCBAJZIH", "F": "XWUTRQPNMLK", "G": "RQPNMLKXWUT", "M": "KLJNPQRTUWX"}
TAIWAN = "ABCDEFGHJKLMNPQRSTUVXYWZIO"
"""Letters by their number in the identity cards of Singapore and of Taiwan."""


def is_card(text: str) -> bool:
    digits = regex.sub(r"[ -]", "", text)
    known = any(
        len(digits) in lengths and digits.startswith(tuple(begins.split())) for begins, lengths in ISSUERS
    )
    return known and bool(luhn.is_valid(digits))


def is_chinas(text: str) -> bool:
    """Place, birthday, number, and a check by ISO 7064 (GB 11643). Places that have been renamed stand in old ones, so
    that no list of them says which are real."""
    try:
        date.fromisoformat(text[6:14])
    except ValueError:
        return False
    return bool(mod_11_2.is_valid(text.upper()))


def is_singapores(text: str) -> bool:
    """NRIC and FIN: seven digits between letters, the last of which they determine."""
    total = sum(int(digit) * weight for digit, weight in zip(text[1:8], PLACES, strict=True))
    if text[0] == "M":
        return SG["M"][10 - (total + 3) % 11] == text[8]
    return SG[text[0]][total % 11] == text[8]


def is_hong_kongs(text: str) -> bool:
    """HKID: one or two letters, six digits, and in brackets what makes the weighted sum a multiple of 11."""
    body = regex.sub(r"[()]", "", text)
    letters, digits, check = body[:-7].rjust(2), body[-7:-1], body[-1]
    values = [36 if letter == " " else ord(letter) - 55 for letter in letters] + [int(d) for d in digits]
    total = sum(value * weight for value, weight in zip(values, range(9, 1, -1), strict=True))
    return (total + (10 if check == "A" else int(check))) % 11 == 0


def is_taiwans(text: str) -> bool:
    """A letter for the place, 1 or 2 (8 or 9 for foreigners), seven digits, and one that makes the sum end in 0."""
    place = TAIWAN.index(text[0]) + 10
    digits = [place // 10, place % 10, *(int(digit) for digit in text[1:])]
    weights = (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=True)) % 10 == 0


CARDS = _number(r"[0-9](?:[ -]?[0-9]){12,18}", is_card)
IBANS = _number(r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?", iban.is_valid)
IDS = (
    _number(r"[0-9]{17}[0-9Xx]", is_chinas),
    _number(r"[0-9]{3}([- ])[0-9]{2}\1[0-9]{4}", lambda text: ssn.is_valid(text) or itin.is_valid(text)),
    _number(
        r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:[0-9]{2} ?){3}[A-D]"
    ),  # Britain
    _number(r"[0-9]{3}([- ])[0-9]{3}\1[0-9]{3}", sin.is_valid),  # Canada
    _number(r"[0-9]{4}([- ])[0-9]{4}\1[0-9]{4}", aadhaar.is_valid),  # India
    _number(r"[A-Z]{5}[0-9]{4}[A-Z]", pan.is_valid),
    _number(r"[STFGM][0-9]{7}[A-Z]", is_singapores),
    _number(r"[A-Z]{1,2}[0-9]{6}\([0-9A]\)", is_hong_kongs),
    _number(r"[A-Z][1289][0-9]{8}", is_taiwans),
)


@dataclass(frozen=True, slots=True)
class Masker:
    """Finds and replaces. regions: whose telephone numbers are known without +country. names: finds people's names."""

    regions: Sequence[str] = ("US", "GB", "CN")
    names: Finder | None = None
    _finders: dict[Kind, list[Finder]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for region in self.regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise UserError(
                    f"no region is called {region!r}", where="regions", fix="US, CN, ... (ISO 3166)"
                )
        finders: dict[Kind, list[Finder]] = {
            "email": [lambda text: (found.span() for found in EMAIL.finditer(text))],
            "iban": [IBANS],
            "id": [*IDS],
            "card": [CARDS],
            "phone": [self._phones],
            "name": [] if self.names is None else [self.names],
        }
        object.__setattr__(self, "_finders", finders)

    def spans(self, text: str) -> list[Span]:
        """What is personal, from left to right, without overlap."""
        plain = text.translate(WIDE)
        found, taken = list[Span](), bytearray(len(plain))
        for kind in KINDS:
            for finder in self._finders[kind]:
                for start, end in finder(plain):
                    if not any(taken[start:end]):
                        taken[start:end] = b"\1" * (end - start)
                        found.append(Span(start, end, kind))
        return sorted(found)

    def mask(self, text: str) -> tuple[str, Counter[str]]:
        """The text with each of them as `[kind]`, and how many there were of each kind."""
        spans = self.spans(text)
        parts, at = list[str](), 0
        for span in spans:
            parts += [text[at : span.start], f"[{span.kind}]"]
            at = span.end
        return "".join([*parts, text[at:]]), Counter(span.kind for span in spans)

    def _phones(self, text: str) -> Iterator[tuple[int, int]]:
        for region in self.regions:
            for match in phonenumbers.PhoneNumberMatcher(text, region):
                yield match.start, match.end


def names_of(model: str) -> Finder:
    """People's names by a spaCy model (a package's name, or a directory). UserError where there is none."""
    if importlib.util.find_spec("spacy") is None:
        raise UserError("spaCy is not installed", where=f"names {model}", fix="pip install spacy")
    import spacy

    try:
        pipeline = spacy.load(model)
    except OSError:
        raise UserError(
            "no such spaCy model", where=f"names {model}", fix=f"python -m spacy download {model}"
        ) from None

    def find(text: str) -> Iterator[tuple[int, int]]:
        for entity in pipeline(text).ents:
            if entity.label_ in ("PERSON", "PER"):
                yield entity.start_char, entity.end_char

    return find
