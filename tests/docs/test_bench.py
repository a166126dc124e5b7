"""What the benchmarks tell is kept, drawn, and what README shows; nothing here measures anything."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The folder bench as a package, with nothing told yet."""
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("compare", "curves", "store", "disk", "__main__"):
        importlib.import_module(f"bench.{name}")
    package = sys.modules["bench"]
    package.compare.TABLES.clear()
    yield package
    package.compare.TABLES.clear()


def tell(bench: Any) -> None:
    for live in (1, 10, 1000):
        samples = {"necrocode": [0.001 * live] * 3, "a <peer>": [0.002, 0.004, 0.003]}
        bench.compare.told(f"register and release, {live} live", samples)
    bench.compare.told("alone", {"one": [1.0]}, "s")


def test_what_was_told_is_kept(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(bench)
    tables = tuple(bench.compare.TABLES)
    peer = tables[0].rows[1]
    assert (peer.name, peer.p50, peer.samples, peer.ratio) == ("a <peer>", 0.003, 3, pytest.approx(3.0))
    monkeypatch.setattr(bench.store, "RESULTS", tmp_path / "results")
    file = bench.store.save(tables, datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert file.name == "2026-01-02-0304.json"
    facts, again = bench.store.loaded(file)
    assert again == tables and facts["at"].startswith("2026-01-02") and facts["machine"]


def test_growth_is_drawn_from_titles_that_differ_in_a_number(bench: Any, tmp_path: Path) -> None:
    tell(bench)
    (curve,) = bench.curves.curves(bench.compare.TABLES)
    assert [x for x, _ in curve.lines["necrocode"]] == [1, 10, 1000]
    drawn = ElementTree.parse(bench.curves.write(curve, tmp_path)).getroot()
    lines = [line.get("points", "").split() for line in drawn.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [3, 3]
    rising = [float(point.partition(",")[2]) for point in lines[0]]
    assert rising == sorted(rising, reverse=True)  # the ordinate of SVG grows downwards
    assert "a <peer>" in [text.text for text in drawn.iter(f"{SVG}text")]


def test_readme_shows_the_newest_result(bench: Any) -> None:
    assert bench.store.readme(check=True), "run: python -m bench readme"


def test_every_benchmark_is_there_and_told_about(bench: Any) -> None:
    page = (ROOT / "bench" / "README.md").read_text()
    for name in sys.modules["bench.__main__"].NAMES:
        assert f"| `{name}` |" in page
        assert "def main() -> None:" in (ROOT / "bench" / f"{name}.py").read_text()
    assert all(shown[0] in sys.modules["bench.__main__"].NAMES for shown in bench.store.SHOWN)
