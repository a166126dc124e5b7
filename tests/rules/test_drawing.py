"""The timeline of a run: which marks stand for what, where there is room for them."""

from __future__ import annotations

from necrocode.chronicle import Chronicle, Span, Stretch
from necrocode.drawing import lines
from necrocode.metrics import Metrics
from necrocode.runs import Plan


def test_a_timeline_has_a_mark_for_each_phase_behind_the_name() -> None:
    phases = ("waiting", "prepare", "work", "verify", "commit")
    spans = tuple(Span("t", 1, phase, 20.0 * at, 20.0 * (at + 1)) for at, phase in enumerate(phases))
    stretch = Stretch("t", 1, 1, 0.0, 100.0, "done", spans)
    told = Chronicle(Plan("k7m2p4", (), {}, 2), 0.0, 100.0, False, Metrics(), (stretch,), (), {}, (), (), ())
    shown = next(line for line in lines(told, 80) if line.startswith("slot 1"))
    assert shown == "slot 1  ||t..........-------------=============vvvvvvvvvvvvv+++++++++++++|  80 %"
