"""necrocode report and metrics: one real run told in six forms, all with the same figures."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_call import CONFLICT, ROOT, Cli, calls

from necrocode import journal
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.runs import runs
from necrocode.statedir import StateDir
from necrocode.testing import wait_for

TASKS = """
[[task]]
id = "first"
command = ["sh", "-c", "sleep 0.1; echo 1 > a.txt"]
files = ["a.txt"]
verify = [["true"]]

[[task]]
id = "second"
command = ["sh", "-c", "echo 2 >> a.txt"]
files = ["a.txt"]

[[task]]
id = "busy"
command = ["true"]
claims = ["gpu:0"]

[[task]]
id = "bad"
command = ["sh", "-c", "echo '<no> \\"&\\" \\u0001'; exit 3"]
retries = 1

[[task]]
id = "never"
command = ["true"]
after = ["bad"]
"""


@pytest.fixture
def cli(state_root: Path, repository: Path) -> Iterator[Cli]:
    with calls(state_root, repository) as cli:
        yield cli


@pytest.fixture
def run(cli: Cli) -> str:
    """A run in which somebody waits for a stranger, two want the same file, one fails twice, and one is cancelled."""
    (cli.where / "tasks.toml").write_text(TASKS)
    ledger = FileLedger(cli.state)
    lease = ledger.register(Request("stranger", (Claim.parse("gpu:0"),), slot=False))
    launcher = cli.start("run", "tasks.toml", "-n", "3")
    wait_for(lambda: ledger.snapshot().waiting, within=60)
    ledger.release(lease)
    assert launcher.wait(60) == 1
    return runs(StateDir(cli.state))[0]


class Page(HTMLParser):
    """What a page is made of: tags, the addresses it would load, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{key}={value}" for key, value in attrs if key in ("src", "href", "onclick", "onload")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_run_in_all_forms(cli: Cli, run: str, tmp_path: Path) -> None:
    told = cli.json("report", run)
    assert told["tasks"] == {
        "first": "done", "second": "done", "busy": "done", "bad": "failed", "never": "cancelled"
    }  # fmt: skip
    assert {one["task_id"]: one["next"] for one in told["failures"]} == {
        "bad": f"necrocode logs {run}/bad", "never": f"necrocode retry {run}"
    }  # fmt: skip
    assert told["contended"][0]["claims"] == "gpu:0" and told["contended"][0]["waits"] == 1
    waited = [one["task_id"] for one in told["stretches"] for span in one["spans"] if span["phase"] == "waiting"]
    assert waited == ["busy"] and told["seconds_by_phase"]["waiting"] > 0
    _check_terminal(cli, run)
    files = {form: tmp_path / f"report.{form}" for form in ("html", "trace", "junit")}
    wrote = cli("report", run, *(word for form, file in files.items() for word in (f"--{form}", str(file))))
    assert wrote.returncode == 0 and wrote.stdout == "", wrote.stderr
    _check_page(Page(files["html"].read_text()), run)
    _check_trace(json.loads(files["trace"].read_text()), told)
    _check_junit(files["junit"])
    _check_that_all_figures_are_the_same(cli, run, told["metrics"], Page(files["html"].read_text()).text)


def _check_terminal(cli: Cli, run: str) -> None:
    for width in (80, 200):
        shown = cli("report", run, COLUMNS=str(width)).stdout
        assert max(map(len, shown.splitlines())) <= width
        assert "\x1b" not in shown
        # How long each phase took, and so which marks there is room for, nobody knows before; where it began is drawn.
        assert re.search(r"^slot \d+ +\|.*\|.*\| +\d+ %$", shown, re.MULTILINE)
        assert f"necrocode logs {run}/bad" in shown and "gpu:0" in shown and f"NEXT  necrocode retry {run}" in shown
    assert cli("report").stdout == cli("report", run).stdout


def _check_page(page: Page, run: str) -> None:
    assert page.tags.count("svg") == 2 and page.tags.count("rect") > 8
    assert "script" not in page.tags and page.loads == []
    assert run in page.text and f"necrocode logs {run}/bad" in page.text
    assert re.search(r"began \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", page.text)  # whoever reads it may be elsewhere


def _check_trace(trace: dict[str, Any], told: dict[str, Any]) -> None:
    events = trace["traceEvents"]
    attempts = [event for event in events if event.get("cat") == "attempt"]
    assert sorted(event["name"] for event in attempts) == ["bad", "bad", "busy", "first", "second"]
    for event in events:
        assert event["ph"] in "MXC" and isinstance(event["pid"], int)
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] > 0
    for tid in {event["tid"] for event in attempts}:  # in one slot they follow each other
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in attempts if event["tid"] == tid)
        assert all(before[1] <= after[0] + 1 for before, after in itertools.pairwise(spans))
    assert max(event["tid"] for event in attempts) == told["slots"]


def _check_junit(path: Path) -> None:
    suite = ElementTree.parse(path).getroot()[0]
    assert datetime.fromisoformat(suite.get("timestamp") or "").tzinfo is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "5", "failures": "1", "skipped": "1"
    }  # fmt: skip
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["bad"]


def _check_that_all_figures_are_the_same(cli: Cli, run: str, ours: dict[str, Any], page: str) -> None:
    """status, metrics, report, JSON and Prometheus: every figure, in each of them."""
    assert cli.json("metrics", "--run", run) == ours
    everything = cli.json("metrics")
    assert cli.json("status")["metrics"] == everything
    lines = [line for line in cli("metrics", "--prometheus").stdout.splitlines() if not line.startswith("#")]
    exposed = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    total = everything["total"]
    for name in ("queued", "refused", "retries", "lost", "errors", "conflicts_detected", "conflicts_avoided", "fenced"):
        assert exposed[f"necrocode_{name}_total"] == total[name], name
    for ours_name, theirs in (("wait", total["waits"]), ("handover", everything["hand_over"])):
        quantiles = {"p50": "0.5", "p95": "0.95", "max": "1"}
        for field, quantile in quantiles.items():
            assert exposed[f'necrocode_{ours_name}_seconds{{quantile="{quantile}"}}'] == theirs[field]
        assert exposed[f"necrocode_{ours_name}_seconds_count"] == theirs["samples"]
    assert exposed["necrocode_leases_max"] == everything["concurrency"]["max"] >= 1
    for status, count in total["attempts"].items():
        assert exposed[f'necrocode_attempts_total{{status="{status}"}}'] == count
    for phase, passes in total["phases"].items():
        assert exposed[f'necrocode_phase_seconds_total{{phase="{phase}"}}'] == passes["seconds"]
    assert exposed["necrocode_memory_megabytes_max"] == total["memory_mb"]
    shown = cli("metrics", "--run", run).stdout
    for name in ("wait", "conflicts", "attempts", "went wrong"):
        (line,) = re.findall(rf"^{name} +(.*)$", shown, re.MULTILINE)
        assert line in cli("report", run).stdout and line in page
    assert re.search(r"^went wrong +1 retry$", shown, re.MULTILINE)
    assert everything["hand_over"]["samples"] == 1  # from the stranger, who is nobody's run
    assert ours["hand_over"] == everything["hand_over"]  # the stranger's end counts, though it is not of the run
    told = list(journal.read(cli.state / "events"))
    (granted,) = (it.mono for it in told if (it.kind, it.runner_id) == ("lease.granted", f"{run}.busy.1"))
    took = granted - max(it.mono for it in told if it.kind == "lease.released" and it.mono <= granted)
    assert ours["hand_over"]["max"] == pytest.approx(took, abs=1e-5)
    assert total["conflicts_detected"] == 1 and total["conflicts_avoided"] == 1 and total["retries"] == 1
    assert (
        f"conflicts {total['conflicts_detected']} detected, {total['conflicts_avoided']} avoided"
        in cli("status").stdout
    )


def test_a_retry_goes_on_where_the_run_ended(cli: Cli) -> None:
    """The time in which nobody followed the run is not part of it."""
    (cli.where / "tasks.toml").write_text('[[task]]\nid = "bad"\ncommand = ["false"]\nworkspace = "none"\n')
    assert cli("run", "tasks.toml").returncode == 1
    (run,) = runs(StateDir(cli.state))
    for day in (cli.state / "events").iterdir():  # two at midnight
        earlier = [json.loads(line) for line in day.read_text().splitlines() if line]
        shifted = [{**event, "at": event["at"] - 3600, "mono": event["mono"] - 3600} for event in earlier]
        day.write_text("".join(f"\n{json.dumps(event)}\n" for event in shifted))
    assert cli("retry", run).returncode == 1
    told = cli.json("report", run)
    assert told["wall"] < 600 and len(told["stretches"]) == 2
    assert all(0 <= one["begin"] <= one["end"] <= told["wall"] for one in told["stretches"])


def test_waiting_for_a_slot_is_no_work_and_its_hint_names_the_limit(cli: Cli) -> None:
    (cli.where / "tasks.toml").write_text('[[task]]\nid = "a"\ncommand = ["true"]\nworkspace = "none"\n')
    cli("config", "set", "limit", "1")
    ledger = FileLedger(cli.state)
    lease = ledger.register(Request("stranger"))
    launcher = cli.start("run", "tasks.toml")
    long = timedelta(seconds=1)
    wait_for(lambda: any(datetime.now(UTC) - it.record.start_time > long for it in ledger.snapshot().waiting), 60)
    ledger.release(lease)
    assert launcher.wait(60) == 0
    told = cli.json("report")
    total, phases = told["metrics"]["total"], told["seconds_by_phase"]
    assert phases["waiting"] > 0.25 * sum(phases.values())
    assert total["seconds"] <= told["wall"] - phases["waiting"] + 1e-3
    (hint,) = re.findall("^HINT.*$", cli("report").stdout, re.MULTILINE)
    assert "waiting for limit: `necrocode config set limit N`" in hint and "split" not in hint


def test_a_run_of_many_is_read_on_a_narrow_screen(cli: Cli) -> None:
    """60 tasks: no line is cut but names in the timeline, every failure and its command is whole, in 80 columns."""
    tasks = "".join(
        f'[[task]]\nid = "a-long-name-of-a-task-{n:02}"\ncommand = ["{"false" if n == 7 else "true"}"]\n'
        'workspace = "none"\n'
        for n in range(60)
    )
    (cli.where / "tasks.toml").write_text(tasks)
    assert cli("run", "tasks.toml", "-n", "8", "-q").returncode == 1
    shown = cli("report", COLUMNS="80", NO_COLOR="1").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "59 done" in shown and re.search(
        r"^a-long-name-of-a-task-07 .*/a-long-name-of-a-task-07$", shown, re.MULTILINE
    )
    figures = shown.partition("time went")[2].partition("NOT DONE")[0]
    assert "…" not in figures
    page = cli("report", "--html", "-").stdout
    assert all(f"a-long-name-of-a-task-{n:02}" in page for n in range(60))


def test_names_from_files_are_only_text_in_a_page(cli: Cli, tmp_path: Path) -> None:
    (cli.where / "<script>alert(1)</script>.toml").parent.mkdir(parents=True, exist_ok=True)
    (cli.where / "<script>alert(1)</script>.toml").write_text(
        '[[task]]\nid = "a"\ncommand = ["sh", "-c", "exit 1"]\nworkspace = "none"\n'
    )
    cli("run", "<script>alert(1)</script>.toml")
    done = cli("report", "--html", "-")
    assert done.returncode == 0, done.stderr
    assert "script" not in Page(done.stdout).tags and "alert(1)" in Page(done.stdout).text


def test_without_a_run_there_is_nothing_to_report(cli: Cli, tmp_path: Path) -> None:
    assert cli("report").returncode == 2
    assert cli("report", "--state-dir", str(tmp_path / "none")).returncode == 2
    assert not (tmp_path / "none").exists()
    StateDir(cli.state)
    assert cli("report", "nope").returncode == 2
    assert cli("report").returncode == 2


def test_metrics_of_nothing_are_zero(cli: Cli, tmp_path: Path) -> None:
    for args in ([], ["--state-dir", str(tmp_path / "none")]):
        assert cli.json("metrics", *args)["total"]["queued"] == 0
        assert cli("metrics", "--prometheus", *args).returncode == 0
    assert cli("metrics", "--run", "last", "--state-dir", str(tmp_path / "none")).returncode == 2
    assert not (tmp_path / "none").exists()


def test_metrics_since_then(cli: Cli) -> None:
    ledger = FileLedger(cli.state)
    ledger.release(ledger.register(Request("one")))
    assert cli.json("metrics", "--since", "1h")["total"]["waits"]["samples"] == 1
    assert cli.json("metrics", "--since", "2030-01-01")["total"]["waits"]["samples"] == 0
    assert cli("metrics", "--since", "soon").returncode == 2
    assert cli("metrics", "--run", "nope").returncode == 2
    assert cli("metrics", "--json", "--prometheus").returncode == 2


@pytest.mark.parametrize(
    ("module", "args", "extra"),
    [("prometheus_client", ["metrics", "--prometheus"], "metrics"), ("jinja2", ["report", "--html", "-"], "report")],
)
def test_a_missing_extra_is_named(cli: Cli, tmp_path: Path, module: str, args: list[str], extra: str) -> None:
    (cli.where / "t.toml").write_text('[[task]]\nid = "a"\ncommand = ["true"]\nworkspace = "none"\n')
    cli("run", "t.toml")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / f"{module}.py").write_text("raise ImportError('hidden')\n")
    wrong = cli(*args, PYTHONPATH=f"{tmp_path / 'hidden'}:{ROOT}")
    assert wrong.returncode == 2 and f"necrocode[{extra}]" in wrong.stderr, wrong.stderr


POISON = """
[[task]]
id = "poison"
command = ["sh", "-c", "kill -9 $PPID; sleep 60"]
"""

LATE = """
[[task]]
id = "late"
command = ["true"]
claims = ["gpu:0"]
"""


def test_the_ends_that_no_runner_tells_are_told_and_all_who_tell_agree(cli: Cli) -> None:
    """Runners that die too often, branches that do not go together, a stranger who lets nobody in, what is left out."""
    (cli.where / "tasks.toml").write_text(POISON + CONFLICT + LATE)
    FileLedger(cli.state).register(Request("stranger", (Claim.parse("gpu:0"),), slot=False))
    told = cli.json("run", "tasks.toml", "-n", "2", "--patience", "0.1")
    assert {one["task_id"]: (one["status"], one["error_kind"]) for one in told["tasks"]} == {
        "poison": ("failed", "lost"), "left": ("done", ""), "right": ("done", ""), "never": ("cancelled", "cancelled"),
        "both": ("failed", "needs_attention"), "late": ("failed", "gpu"),
    }  # fmt: skip
    ends = {one["task_id"]: one["status"] for one in told["tasks"]}
    counts = dict(Counter(ends.values()))
    report, metrics, status = (cli.json(verb) for verb in ("report", "metrics", "status"))
    assert report["tasks"] == ends and report["metrics"]["total"]["ended"] == counts
    assert metrics["total"]["ended"] == metrics["runs"][told["run"]]["ended"] == counts
    assert metrics["total"]["attempts"] == {"lost": 2, "failed": 3, "done": 2} and metrics["total"]["lost"] == 3
    assert {one["task_id"]: one["status"] for one in status["finished"]} == ends
    assert len(status["finished"]) == 8 and all(one["error"] for one in status["finished"] if one["status"] != "done")
    cli("run", "--resume", told["run"], "-q")  # which says once more what is not started
    assert len(cli.json("status")["finished"]) == 8 and cli.json("metrics")["total"]["ended"] == counts
