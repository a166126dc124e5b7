"""What pages derive from the code is what the code says now."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from necrocode.cli import VERBS
from necrocode.declared import FIELDS, SETTINGS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pages", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = loaded(DOCS / "pages.py")


@pytest.mark.parametrize("page", PAGES.pages(), ids=lambda page: page.stem)
def test_what_a_page_derives_is_up_to_date(page: Path) -> None:
    assert PAGES.written(page) == page.read_text(), f"run: {sys.executable} docs/pages.py"


def test_every_command_and_every_setting_is_on_a_page_of_its_own_kind() -> None:
    derived = {page.stem for page in PAGES.pages()}
    assert set(VERBS) <= derived
    page = (DOCS / "configuration.md").read_text()
    for key, setting in SETTINGS.items():
        assert f"| `{key}` |" in page and setting.variable in page and setting.described in page
    assert all(f"| `{field}` |" in page for field in FIELDS)


def test_a_stale_table_is_noticed_and_mended(tmp_path: Path) -> None:
    page = tmp_path / "wait.md"
    page.write_text("before\n<!-- made by docs/pages.py: options -->\nold\n<!-- end -->\nafter\n")
    text = PAGES.written(page)
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text and "`--timeout SECONDS`" in text
