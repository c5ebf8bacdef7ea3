"""What a page carries of its own, safely."""

from __future__ import annotations

from pathlib import Path

from plaudit.evaluation import page


def test_a_script_that_stands_in_a_page_cannot_end_its_element(tmp_path: Path) -> None:
    (tmp_path / "some.js").write_bytes(b'a = "</script><b>";\r\n')
    assert page._inline(tmp_path / "some.js") == 'a = "<\\/script><b>";\n'
