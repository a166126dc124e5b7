"""The chronicle of a run for other programs: a page for a browser, a trace for Perfetto, JUnit's XML for CI."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from importlib import resources
from typing import Any

from necrocode import figures
from necrocode.chronicle import Chronicle, Stretch
from necrocode.errors import ConfigError
from necrocode.outcome import Status
from necrocode.screen import duration

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SKIPPED = (str(Status.CANCELLED), "not_begun")


def html(told: Chronicle) -> str:
    """One page with everything in it. Raises ConfigError when jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise ConfigError("the page needs the package jinja2", hint="pip install 'necrocode[report]'") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    template = environment.from_string(resources.files("necrocode").joinpath("report.html.j2").read_text())
    page: str = template.render(
        told=told, plan=told.plan, figures=figures.shown(told.metrics), shares=told.shares(),
        began=f"{_moment(told.began):%Y-%m-%d %H:%M:%S %z (%Z)}", width=1000.0 / (told.wall or 1.0),
        steps=_steps(told), ticks=[told.wall * part / 4 for part in range(5)] if told.wall else [0.0],
        ends=dict(Counter(told.status(task.id) for task in told.plan.tasks).most_common()),
    )  # fmt: skip
    return _NOT_XML.sub("?", page)


def _moment(seconds: float) -> datetime:
    """In the time zone of this machine, which it names: files are read elsewhere, too."""
    return datetime.fromtimestamp(seconds).astimezone()


def _steps(told: Chronicle) -> str:
    """The points of the line of how many ran at once, 1000 wide and 100 high."""
    line, most = told.at_once, told.metrics.concurrency.max or 1
    points, before = [], 0
    for seconds, count in line:
        x = 1000.0 * seconds / (told.wall or 1.0)
        points += [(x, before), (x, count)]
        before = count
    return " ".join(f"{x:.1f},{100 - 100 * count / most:.1f}" for x, count in points)


def trace(told: Chronicle) -> str:
    """Chrome's trace event format, which Perfetto and chrome://tracing open; times are microseconds."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": f"necrocode run {told.plan.run_id}"}}
    ]
    for slot in range(told.slots):
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": slot + 1, "args": {"name": f"slot {slot}"}})
    for stretch in told.stretches:
        events += _traced(stretch)
    for seconds, count in told.at_once:
        at_once = {"leases": count}
        events.append({"ph": "C", "name": "at once", "pid": 1, "tid": 0, "ts": _micro(seconds), "args": at_once})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, ensure_ascii=False)


def _traced(stretch: Stretch) -> Iterator[dict[str, Any]]:
    where = {"pid": 1, "tid": stretch.slot + 1}
    facts = {"attempt": stretch.attempt, "status": stretch.status}
    yield {"ph": "X", "name": stretch.task_id, "cat": "attempt", **where, **_times(stretch), "args": facts}
    for span in stretch.spans:
        yield {"ph": "X", "name": span.phase, "cat": "phase", **where, **_times(span), "args": {"task": span.task_id}}


def _times(one: Any) -> dict[str, int]:
    return {"ts": _micro(one.begin), "dur": max(1, _micro(one.end) - _micro(one.begin))}


def _micro(seconds: float) -> int:
    return int(seconds * 1e6)


def junit(told: Chronicle) -> str:
    """JUnit's XML, as CI systems read it: a test case for each task."""
    from xml.etree import ElementTree

    ends = [told.status(task.id) for task in told.plan.tasks]
    failed = sum(end not in (*_SKIPPED, str(Status.DONE)) for end in ends)
    counts = {"tests": len(ends), "failures": failed, "errors": 0, "skipped": sum(end in _SKIPPED for end in ends)}
    suites = ElementTree.Element("testsuites")
    attributes = {
        "name": f"necrocode {told.plan.run_id}", **{key: str(count) for key, count in counts.items()},
        "time": f"{told.wall:.3f}", "timestamp": _moment(told.began).isoformat(timespec="seconds"),
    }  # fmt: skip
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    go_on = {failure.task_id: failure for failure in told.failures}
    for task in told.plan.tasks:
        outcome, failure = told.outcomes.get(task.id), go_on.get(task.id)
        seconds = f"{outcome.seconds if outcome and outcome.attempt else 0.0:.3f}"
        case = ElementTree.SubElement(suite, "testcase", {"name": task.id, "classname": "necrocode", "time": seconds})
        if failure:
            kind = "skipped" if failure.status in _SKIPPED else "failure"
            said = ElementTree.SubElement(case, kind, {"message": _NOT_XML.sub("?", failure.error)})
            said.text = _NOT_XML.sub("?", f"{failure.status}: {failure.error}\n{failure.next}\n")
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
