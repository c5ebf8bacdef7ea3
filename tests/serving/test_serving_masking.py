"""Personal data is found in both languages, and what only looks like it stays."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.serving.masking import Masker, names_of
from plaudit.types import UserError

MASKER = Masker()

MASKED = [
    # Numbers are issuers' test numbers, reserved ones, and worked examples of the standards themselves.
    ("Write to jane.doe+news@mail.example.co.uk, please.", "Write to [email], please."),
    ("请发到wang.lei@example.com谢谢", "请发到[email]谢谢"),
    ("<o'brien@example.org>", "<[email]>"),
    ("联系:zhang_wei@example.com.cn。", "联系:[email]。"),
    ("mail me: user@xn--fsqu00a.xn--0zwm56d", "mail me: [email]"),
    ("Call (415) 555-2671 today", "Call [phone] today"),
    ("Ring +44 20 7946 0958 or mail", "Ring [phone] or mail"),
    ("打我电话13812345678，谢谢", "打我电话[phone]，谢谢"),
    ("办公室010-62345678转5", "办公室[phone]转5"),
    ("手机：１３８１２３４５６７８。", "手机：[phone]。"),
    ("+86 138 1234 5678是我的微信", "[phone]是我的微信"),
    ("07911 123456 is my mobile", "[phone] is my mobile"),
    ("Card 4111 1111 1111 1111 exp 12/28", "Card [card] exp 12/28"),
    ("amex 3782-822463-10005 ok", "amex [card] ok"),
    ("5555555555554444", "[card]"),
    ("银联卡号6200000000000005，", "银联卡号[card]，"),
    ("卡：４１１１１１１１１１１１１１１１", "卡：[card]"),
    ("IBAN GB29 NWBK 6016 1331 9268 19.", "IBAN [iban]."),
    ("Konto DE89370400440532013000 bitte", "Konto [iban] bitte"),
    ("My SSN is 536-90-4399.", "My SSN is [id]."),
    ("身份证号11010519491231002X请核对", "身份证号[id]请核对"),
    ("身份证 440524188001010014", "身份证 [id]"),
    ("NINO AB 12 34 56 C here", "NINO [id] here"),
    ("SIN 130 692 544 in Canada", "SIN [id] in Canada"),
    ("Aadhaar 2341 2341 2346", "Aadhaar [id]"),
    ("NRIC S1234567D", "NRIC [id]"),
    ("HKID A123456(3)", "HKID [id]"),
    ("身分證 A123456789", "身分證 [id]"),
    ("a@b.io and c@d.io", "[email] and [email]"),
    ("jane@example.com, +1 212-555-0123, 4111111111111111", "[email], [phone], [card]"),
]
KEPT = [
    "Order 1234567890123 shipped on 2024-10-12 at 10:30.",
    "Card 4111 1111 1111 1112 fails its check",
    "身份证号110105194912310021的校验不对",
    "123-45-67890 is no SSN, nor is 000-12-3456",
    "ISBN 978-3-16-148410-0",
    "192.168.100.200 is an address of a machine",
    "pi is 3.14159265358979",
    "a = b @ c; foo@bar is a matrix product",
    "@everyone please read #12345678",
    "他在2024年10月花了12345.67元",
    "版本号 2026.11.29 于 18:44 发布",
    "IBAN GB29 NWBK 6016 1331 9268 18 fails",
    "NRIC S1234567A fails",
    "HKID A123456(4) fails",
    "身分證 A123456788 不對",
    "The table has 1,000,000 rows and 16 columns",
    "commit 4111111111111111abcdef",
    "SKU AB123456 and lot 130 692 545",
    "第12345678号文件",
    "Room 1021, 5th floor, 94105 San Francisco",
]


@pytest.mark.parametrize(("text", "masked"), MASKED)
def test_personal_data_is_replaced(text: str, masked: str) -> None:
    assert MASKER.mask(text)[0] == masked


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert MASKER.mask(text) == (text, Counter())


def test_kinds_are_counted() -> None:
    assert MASKER.mask(MASKED[-1][0])[1] == {"email": 1, "phone": 1, "card": 1}


def test_regions_decide_which_local_numbers_are_known() -> None:
    assert Masker(regions=["CN"]).mask("07911 123456 is mine")[0] == "07911 123456 is mine"
    with pytest.raises(UserError, match="no region is called 'XX'"):
        Masker(regions=["XX"])


def test_names_are_found_where_something_finds_them() -> None:
    text = "Ask Jane Doe at jane@example.com"
    found = Masker(names=lambda text: [(text.index("Jane Doe"), text.index("Jane Doe") + 8)])
    assert found.mask(text)[0] == "Ask [name] at [email]"
    # What is an address already is no name as well.
    assert Masker(names=lambda text: [(text.index("jane"), len(text))]).mask(text)[0].endswith("[email]")


def test_a_model_for_names_that_is_not_there_is_said() -> None:
    what = "no such spaCy model" if find_spec("spacy") else "spaCy is not installed"
    with pytest.raises(UserError, match=what):
        names_of("no_such_model")


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_masking_again_changes_nothing(text: str) -> None:
    once, _ = MASKER.mask(text)
    assert MASKER.mask(once)[0] == once


@given(st.lists(st.sampled_from([text for text, _ in MASKED] + KEPT), min_size=1, max_size=4))
def test_lines_do_not_disturb_each_other(lines: list[str]) -> None:
    assert MASKER.mask("\n".join(lines))[0] == "\n".join(MASKER.mask(line)[0] for line in lines)
