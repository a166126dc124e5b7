"""One attempt, end to end: real processes, a real repository, the result as it lies on the disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from byhand import sh
from stalls import longer

from necrocode import journal, process, scratch
from necrocode import work as work_room
from necrocode.attempt import carry
from necrocode.claim import Claim
from necrocode.errors import StateUnreadable, StateUnusable
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, put_aside, read_result, take, taken_by, write_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import StateDir, mark
from necrocode.task import Step, Task
from necrocode.testing import check, wait_for
from necrocode.vigil import is_gone
from necrocode.work import Place, Work

AGENT = (
    sys.executable,
    "-c",
    "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('agent.json', 'w'))",
)


class Desk:
    """A ledger, a repository, and orders for one attempt after another."""

    def __init__(self, tmp: Path, repository: Path) -> None:
        self.ledger, self.repository, self.tmp = FileLedger(tmp / "state"), repository, tmp
        self.number = 0
        self.run = f"run-{os.urandom(4).hex()}"  # nobody else's processes may bear our mark

    def order(self, task: Task, **terms: Any) -> Order:
        self.number += 1
        folder = self.ledger.state.runs / self.run / f"{task.id}.{self.number}"
        folder.mkdir(parents=True)
        where: dict[str, Any] = {
            "path": str(self.tmp / "work" / task.id),
            "repository": str(self.repository),
            "branch": task.branch or f"necrocode/run/{task.id}",
            "grace": 2.0,
            "heartbeat_interval": 0.1,
        }
        return Order(self.run, task, self.number, str(folder), **{**where, **terms})

    def shell(self, script: str, **task: Any) -> Order:
        terms = task.pop("terms", {})
        return self.order(Task("t", command=("sh", "-c", script), **task), **terms)

    def carry(self, order: Order, **more: Any) -> Outcome:
        outcome = carry(order, self.ledger, **more)
        assert read_result(Path(order.folder)) == outcome or outcome.error_kind in ("duplicate", "register", "limit")
        self.assert_at_rest(order)
        return outcome

    def assert_at_rest(self, order: Order) -> None:
        assert process.marked(mark(self.ledger.state.root, order.runner_id)) == []
        assert not os.path.lexists(scratch.place_of(Path(order.folder)))
        assert os.listdir(self.ledger.state.runners) == []
        assert check(self.ledger.state.root)

    def git(self, *args: str) -> str:
        return sh("git", *args, cwd=self.repository)

    def tree(self, branch: str) -> dict[str, str]:
        names = self.git("ls-tree", "-r", "--name-only", branch).splitlines()
        return {name: self.git("show", f"{branch}:{name}") for name in names}

    def kinds(self, **filters: str) -> list[str]:
        return [event.kind for event in journal.read(self.ledger.state.events, **filters)]


@pytest.fixture
def desk(tmp_path: Path, repository: Path) -> Desk:
    return Desk(tmp_path, repository)


# -- the good way


def test_a_command_works_in_its_own_place_and_its_work_is_committed(desk: Desk) -> None:
    order = desk.shell("echo two >> README.md; echo new > new.txt", title="Say two")
    outcome = desk.carry(order)
    assert (outcome.status, outcome.exit_code, outcome.error) == (Status.DONE, 0, "")
    assert set(outcome.files_changed) == {"README.md", "new.txt"}
    assert (outcome.lines_added, outcome.lines_removed, len(outcome.commits)) == (2, 0, 1)
    assert desk.tree(order.branch)["README.md"] == "one\ntwo"
    assert desk.git("status", "--porcelain") == "" and desk.tree("main")["README.md"] == "one"
    message = desk.git("log", "-1", "--format=%B", order.branch)
    assert message.startswith("Say two\n")
    assert f"Necrocode-Runner: {order.runner_id}" in message and f"Necrocode-Token: {outcome.token}" in message
    assert not Path(order.path).exists() and order.path not in desk.git("worktree", "list")
    assert "+two" in (Path(order.folder) / "diff.patch").read_text()
    assert set(outcome.phases) == {"prepare", "work", "commit", "artifacts"}
    assert outcome.seconds >= outcome.phases["work"] > 0
    kinds = desk.kinds(runner_id=order.runner_id)
    story = ["lease.granted", "attempt.started", "workspace.prepared", "work.recorded", "workspace.removed"]
    assert [kind for kind in kinds if kind in story] == story
    assert kinds[-2:] == ["attempt.finished", "lease.released"]


def test_what_changed_is_a_file_for_its_owner_only(desk: Desk) -> None:
    order = desk.shell("echo two >> README.md")
    desk.carry(order)
    assert (Path(order.folder) / "diff.patch").stat().st_mode & 0o777 == 0o600


def test_what_the_base_got_since_a_branch_was_made_is_no_change_of_it(desk: Desk) -> None:
    desk.git("branch", "older", "HEAD~1")
    order = desk.order(Task("t", command=("sh", "-c", "echo new > new.txt"), branch="older"))
    outcome = desk.carry(order)
    assert outcome.files_changed == ("new.txt",) and (outcome.lines_added, outcome.lines_removed) == (1, 0)
    assert "src/a.py" not in (Path(order.folder) / "diff.patch").read_text()


@pytest.mark.parametrize("mode", ["worktree", "clone"])
def test_what_an_earlier_attempt_left_is_saved_and_told(desk: Desk, mode: str) -> None:
    desk.carry(desk.shell("echo half > half.txt; exit 3", terms={"mode": mode}))
    order = desk.shell("true", terms={"mode": mode})
    assert desk.carry(order).ok
    (told,) = journal.read(desk.ledger.state.events, runner_id=order.runner_id, kind="snapshot.taken")
    assert desk.git("rev-parse", told.facts["ref"]) == told.facts["commit"]
    assert desk.git("show", f"{told.facts['commit']}:half.txt") == "half"


def test_nothing_to_commit_is_done_without_a_commit(desk: Desk) -> None:
    outcome = desk.carry(desk.shell("true"))
    assert (outcome.status, outcome.commits, outcome.files_changed) == (Status.DONE, (), ())


def test_without_a_workspace_the_command_runs_where_it_is_told(desk: Desk) -> None:
    place = desk.tmp / "here"
    order = desk.shell("pwd > pwd.txt; git rev-parse --git-dir 2>/dev/null || true")
    order = order._replace(mode="none", path=str(place), repository="", branch="")
    assert desk.carry(order).ok
    assert (place / "pwd.txt").read_text().strip() == str(place)


def test_in_a_shared_clone_the_work_comes_home(desk: Desk) -> None:
    order = desk.shell("echo two > two.txt", terms={"mode": "clone"})
    outcome = desk.carry(order)
    assert outcome.ok and desk.tree(order.branch)["two.txt"] == "two"


def test_a_callable_does_the_work(desk: Desk) -> None:
    def work(place: Place) -> Work:
        (place.workspace.path / "called.txt").write_text(place.task.prompt)
        return Work(usage={"tokens": 12.0})

    order = desk.order(Task("t", prompt="say this"))
    outcome = desk.carry(order, work=work)
    assert outcome.ok and outcome.usage["tokens"] == 12.0
    assert desk.tree(order.branch)["called.txt"] == "say this"


@pytest.mark.parametrize("error", [ValueError("no such thing"), KeyError("x"), OSError(5, "broken")])
def test_whatever_a_callable_raises_is_its_failure(desk: Desk, error: Exception) -> None:
    def work(place: Place) -> Work:
        raise error

    order = desk.order(Task("t", prompt="x"))
    outcome = desk.carry(order, work=work)
    assert outcome.status is Status.FAILED and type(error).__name__ in outcome.error
    assert "Traceback" in (Path(order.folder) / "stderr.log").read_text()


def test_a_callable_that_is_interrupted_leaves_no_lease(desk: Desk) -> None:
    def work(place: Place) -> Work:
        raise KeyboardInterrupt

    order = desk.order(Task("t", prompt="x"))
    with pytest.raises(KeyboardInterrupt):
        carry(order, desk.ledger, work=work)
    desk.assert_at_rest(order)


# -- prompts


HOSTILE = """\
it's "quoted" `touch bt` $(touch dollar) ; touch semi
--help
{workspace} {prompt} {branch} %s \\ \t ${HOME} ünï ✓"""


def test_a_prompt_reaches_the_agent_as_one_argument_unexpanded(desk: Desk) -> None:
    order = desk.order(
        Task("t", prompt=HOSTILE, title="T"), agent=(*AGENT, "--in={workspace}", "-p", "{prompt}", "{title}")
    )
    assert desk.carry(order).ok
    argv, _ = json.loads(desk.tree(order.branch)["agent.json"])
    assert argv == [f"--in={order.path}", "-p", HOSTILE, "T"]
    assert set(desk.tree(order.branch)) == {*desk.tree("main"), "agent.json"}


@pytest.mark.parametrize("prompt", ["--help", "-rf /", "-"])
def test_a_prompt_that_begins_with_a_dash_is_no_option(desk: Desk, prompt: str) -> None:
    order = desk.order(Task("t", prompt=prompt), agent=(*AGENT, "{prompt}", "--message={prompt}"))
    assert desk.carry(order).ok
    argv, _ = json.loads(desk.tree(order.branch)["agent.json"])
    assert argv == [f" {prompt}", f"--message={prompt}"]


def test_a_prompt_of_100_kb(desk: Desk) -> None:
    order = desk.order(Task("t", prompt="x" * 100_000), agent=(*AGENT, "{prompt}"))
    assert desk.carry(order).ok
    argv, _ = json.loads(desk.tree(order.branch)["agent.json"])
    assert argv == ["x" * 100_000]


def test_a_prompt_that_no_argument_can_hold_is_told(desk: Desk) -> None:
    outcome = desk.carry(desk.order(Task("t", prompt="x" * 200_000), agent=(*AGENT, "{prompt}")))
    assert outcome.error_kind == "not_executable" and "too long" in outcome.error


@pytest.mark.parametrize("prompt", ["nul \0 byte", "half \ud800 pair"])
def test_a_prompt_that_no_program_can_be_given_fails_the_attempt_alone(desk: Desk, prompt: str) -> None:
    outcome = desk.carry(desk.order(Task("t", prompt=prompt, title="x"), agent=(*AGENT, "{prompt}")))
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, 126)


def test_a_prompt_without_an_agent_is_never_done(desk: Desk) -> None:
    outcome = carry(order := desk.order(Task("t", prompt="do it")), desk.ledger)
    assert outcome.status is Status.FAILED and "no agent" in outcome.error
    assert not Path(order.path).exists()


# -- the environment


def test_the_environment_says_who_and_where_and_nothing_of_ours(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("NECROCODE_LIMIT", "3")
    monkeypatch.setenv("MINE", "kept")
    task = Task("t", prompt="x", env={"COLOUR": "blue", "MINE_TOO": "a b"}, timeout=60.0)
    claims = (Claim("port", "8123"), Claim("port", "8124"))
    order = desk.order(task, agent=AGENT, claims=claims)
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setenv("GIT_PAGER", "less")
    outcome = desk.carry(order)
    _, env = json.loads(desk.tree(order.branch)["agent.json"])
    assert (env["COLOUR"], env["MINE_TOO"], env["MINE"]) == ("blue", "a b", "kept")
    assert "GIT_PAGER" not in env and "NECROCODE_LIMIT" not in env
    ours = {key.removeprefix("NECROCODE_"): value for key, value in env.items() if key.startswith("NECROCODE_")}
    deadline = float(ours.pop("DEADLINE"))
    assert 0 < deadline - time.time() <= 61
    assert ours == {
        "RUN_ID": desk.run, "TASK": "t", "ATTEMPT": "1", "RUNNER": order.runner_id, "BRANCH": order.branch,
        "LEASE": mark(desk.ledger.state.root, order.runner_id),
        "TOKEN": str(outcome.token), "WORKSPACE": order.path, "PORTS": "8123,8124",
        "STATE_DIR": str(desk.ledger.state.root),
    }  # fmt: skip
    assert (env["GIT_TERMINAL_PROMPT"], env["NO_COLOR"]) == ("0", "1")


def test_tmpdir_is_private_short_enough_for_a_socket_and_removed(desk: Desk) -> None:
    script = (
        "import os, socket, stat, tempfile\n"
        "t = os.environ['TMPDIR']; print(t); assert stat.S_IMODE(os.stat(t).st_mode) == 0o700\n"
        "d = tempfile.mkdtemp(prefix='pymp-'); socket.socket(socket.AF_UNIX).bind(d + '/listener-abcdefgh')\n"
        "os.mkdir(d + '/locked'); open(d + '/locked/file', 'w'); os.chmod(d + '/locked', 0)\n"
    )
    order = desk.order(Task("t" * 64, command=(sys.executable, "-c", script)))
    assert desk.carry(order).ok, (Path(order.folder) / "stderr.log").read_text()
    said = (Path(order.folder) / "stdout.log").read_text().strip()
    assert said == scratch.place_of(Path(order.folder)) and not os.path.lexists(said)


def test_a_stranger_in_the_place_of_tmpdir_is_neither_used_nor_removed(desk: Desk, tmp_path: Path) -> None:
    order = desk.shell("true")
    planted = Path(scratch.place_of(Path(order.folder)))
    target = tmp_path / "precious"
    target.mkdir()
    planted.symlink_to(target)
    try:
        outcome = carry(order, desk.ledger)
        assert outcome.status is Status.FAILED and str(planted) in outcome.error
        assert planted.is_symlink() and target.is_dir()
    finally:
        planted.unlink()


# -- the bad ways


def test_a_failed_command_keeps_its_workspace_and_commits_nothing(desk: Desk) -> None:
    order = desk.shell("echo half > half.txt; exit 3")
    outcome = desk.carry(order)
    assert (outcome.status, outcome.exit_code, outcome.error_kind) == (Status.FAILED, 3, "work")
    assert outcome.commits == () and desk.git("rev-parse", order.branch) == desk.git("rev-parse", "main")
    assert (Path(order.path) / "half.txt").read_text() == "half\n"
    assert "workspace.kept" in desk.kinds(runner_id=order.runner_id)


def test_work_that_is_not_accepted_is_not_committed(desk: Desk) -> None:
    order = desk.shell("echo bad > bad.txt", verify=(("test", "-e", "bad.txt"), ("sh", "-c", "echo no >&2; exit 7")))
    outcome = desk.carry(order)
    assert (outcome.status, outcome.exit_code, outcome.error_kind) == (Status.FAILED, 7, "verify")
    assert "not accepted" in outcome.error and outcome.commits == ()
    assert (Path(order.path) / "bad.txt").exists()
    assert (Path(order.folder) / "verify-2.stderr.log").read_text() == "no\n"


def test_the_next_attempt_saves_what_the_failed_one_left(desk: Desk) -> None:
    desk.carry(desk.shell("echo half > half.txt; exit 1"))
    order = desk.shell("test ! -e half.txt && echo whole > whole.txt")
    assert desk.carry(order).ok
    snapshots = desk.git("for-each-ref", "--format=%(refname)", "refs/necrocode/snap").splitlines()
    assert len(snapshots) == 1 and desk.git("show", f"{snapshots[0]}:half.txt") == "half"
    assert "half.txt" not in desk.tree(order.branch)


def test_what_an_agent_committed_itself_counts(desk: Desk) -> None:
    order = desk.shell("echo 1 > one.txt; git add -A; git commit -qm 'by myself'; echo 2 > two.txt")
    outcome = desk.carry(order)
    assert outcome.ok and len(outcome.commits) == 2 and set(outcome.files_changed) == {"one.txt", "two.txt"}


@pytest.mark.parametrize(
    ("task", "code", "kind"),
    [
        (Task("t", command=("no-such-program-here",)), 127, "not_found"),
        (Task("t", command=("./README.md",)), 126, "not_executable"),
        (Task("t", command=("sh", "-c", "kill -9 $$")), 137, "work"),
    ],
)
def test_how_a_command_can_fail(desk: Desk, task: Task, code: int, kind: str) -> None:
    outcome = desk.carry(desk.order(task))
    assert (outcome.status, outcome.exit_code, outcome.error_kind) == (Status.FAILED, code, kind)
    assert task.command[0] in outcome.error


def test_a_script_whose_interpreter_is_missing_says_so(desk: Desk) -> None:
    (desk.repository / "tool").write_text("#!/no/such/interpreter\n")
    (desk.repository / "tool").chmod(0o755)
    desk.git("add", "-A")
    desk.git("commit", "-qm", "tool")
    outcome = desk.carry(desk.order(Task("t", command=("./tool",))))
    assert outcome.exit_code == 126 and "its interpreter /no/such/interpreter is not there" in outcome.error


@pytest.mark.parametrize(
    ("clock", "kind", "said", "terms"),
    [
        ("timeout", "timeout", "sh ran out of time after", {}),
        ("silent_timeout", "silent", "sh gave no sign of progress for {} s", {"timeout": 60.0}),
    ],
)
def test_a_clock_ends_the_whole_tree(desk: Desk, clock: str, kind: str, said: str, terms: dict[str, float]) -> None:
    for seconds in longer(0.5):
        order = desk.shell("echo begun; (setsid sleep 100 &); sleep 100", **terms, **{clock: seconds})
        began = time.monotonic()
        outcome = desk.carry(order)
        assert (outcome.status, outcome.error_kind) == (Status.TIMED_OUT, kind)
        assert said.format(seconds) in outcome.error
        assert time.monotonic() - began < 20 + seconds
        if (printed := (Path(order.folder) / "stdout.log").read_text()) == "begun\n":
            return
        assert printed == ""
    pytest.fail("it never began in time")


def test_verification_has_the_same_clock(desk: Desk) -> None:
    outcome = desk.carry(desk.shell("true", verify=(("sleep", "100"),), timeout=0.5))
    assert (outcome.status, outcome.error_kind) == (Status.TIMED_OUT, "timeout")


@pytest.mark.parametrize("stop", [threading.Event, process.Stop])
def test_a_wish_to_stop_ends_it(desk: Desk, stop: Callable[[], Any]) -> None:
    order, sign = desk.shell("trap 'echo bye; exit 0' TERM; echo begun; while :; do sleep 0.05; done"), stop()
    log = Path(order.folder) / "stdout.log"
    threading.Thread(target=lambda: (wait_for(lambda: log.exists() and log.read_text()), sign.set())).start()
    outcome = desk.carry(order, stop=sign)
    assert (outcome.status, outcome.error_kind) == (Status.CANCELLED, "stopped")
    assert log.read_text().split() == ["begun", "bye"]


def test_a_megabyte_of_output_is_kept(desk: Desk) -> None:
    order = desk.order(Task("t", command=(sys.executable, "-c", "import sys; sys.stdout.write('x' * (1 << 20))")))
    assert desk.carry(order).ok
    assert (Path(order.folder) / "stdout.log").stat().st_size == 1 << 20


# -- set-up


def test_set_up_runs_in_each_fresh_workspace_before_the_work(desk: Desk) -> None:
    order = desk.shell("cat made.txt > seen.txt", terms={"setup": (("sh", "-c", "echo made > made.txt"),)})
    assert desk.carry(order).ok
    assert desk.tree(order.branch)["seen.txt"] == "made"


def test_a_set_up_that_fails_is_the_verdict(desk: Desk) -> None:
    order = desk.shell("echo never > never.txt", terms={"setup": (("true",), ("sh", "-c", "echo why >&2; exit 9"))})
    outcome = desk.carry(order)
    assert outcome.status is Status.FAILED and "setting up" in outcome.error and "9" in outcome.error
    assert (Path(order.folder) / "setup-2.stderr.log").read_text() == "why\n"
    assert not (Path(order.path) / "never.txt").exists()


def test_a_base_that_does_not_exist_fails_the_attempt(desk: Desk) -> None:
    outcome = desk.carry(desk.shell("true", terms={"base": "no-such-revision"}))
    assert (outcome.status, outcome.error_kind) == (Status.FAILED, "prepare")
    assert "no-such-revision" in outcome.error


# -- playbooks


def test_a_playbook_passes_over_tries_again_and_is_filled_in(desk: Desk) -> None:
    steps = (
        Step("skip", ("touch", "skipped"), condition="COLOUR == 'red'"),
        Step(
            "take", ("sh", "-c", 'echo "$0" "$1"', "${COLOUR}", "${task_id}:$HOME:$(x)"), condition="COLOUR == 'blue'"
        ),
        Step("again", ("sh", "-c", "echo x >> tries; test $(wc -l < tries) -ge 3"), retry_count=5),
        Step("may fail", ("false",), fail_fast=False),
        Step("last", ("touch", "${workspace}/last")),
    )
    order = desk.order(Task("t", playbook=steps, env={"COLOUR": "blue"}))
    outcome = desk.carry(order)
    assert outcome.ok, outcome.error
    assert set(outcome.files_changed) == {"tries", "last"} and desk.tree(order.branch)["tries"] == "x\nx\nx"
    assert (Path(order.folder) / "step-2.stdout.log").read_text() == "blue t:$HOME:$(x)\n"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step("bad", ("sh", "-c", "exit 4")), "step 'bad': sh ended with 4"),
        (Step("unset", ("echo", "${NO_SUCH_NAME}")), "NO_SUCH_NAME"),
        (Step("odd", ("true",), condition="a b c"), "no condition"),
        (Step("slow", ("sleep", "100"), timeout_seconds=0.3), "out of time"),
    ],
)
def test_the_step_that_fails_ends_the_playbook(desk: Desk, step: Step, said: str) -> None:
    order = desk.order(Task("t", playbook=(Step("one", ("touch", "one")), step, Step("two", ("touch", "two")))))
    outcome = desk.carry(order)
    assert outcome.status in (Status.FAILED, Status.TIMED_OUT) and said in outcome.error
    assert (Path(order.path) / "one").exists() and not (Path(order.path) / "two").exists()


def test_when_its_time_is_over_no_step_is_forgiven(desk: Desk) -> None:
    steps = (Step("slow", ("sleep", "100"), fail_fast=False), Step("after", ("touch", "after"), fail_fast=False))
    outcome = desk.carry(desk.order(Task("t", playbook=steps, timeout=0.4)))
    assert outcome.status is Status.TIMED_OUT


# -- the lease


def test_an_attempt_waits_for_a_stranger_and_goes_on(desk: Desk) -> None:
    order = desk.shell("true", terms={"claims": (Claim("gpu", "0"),)})
    stranger = FileLedger(desk.ledger.state.root).register(Request("stranger", (Claim("gpu", "0"),)))
    told: list[tuple[str, str]] = []

    def hear(phase: str, detail: str = "") -> None:
        told.append((phase, detail))
        if phase == "waiting":
            desk.ledger.release(stranger)

    outcome = desk.carry(order, told=hear)
    assert outcome.ok and outcome.waited > 0
    assert [phase for phase, _ in told] == ["waiting", "granted", "prepare", "work", "commit", "artifacts"]
    assert "stranger" in told[0][1]


@pytest.mark.parametrize("terms", [{"wait": False}, {"patience": 0.2}])
def test_an_attempt_that_is_refused_names_the_holder(desk: Desk, terms: dict[str, Any]) -> None:
    lease = desk.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    outcome = carry(desk.shell("true", terms={"claims": (Claim("gpu", "0"),), **terms}), desk.ledger)
    assert (outcome.status, outcome.error_kind) == (Status.FAILED, "gpu") and "stranger" in outcome.error
    desk.ledger.release(lease)


def test_a_lost_lease_stops_the_work_and_publishes_nothing(desk: Desk) -> None:
    order = desk.shell("echo x > x.txt; sleep 100")

    def fence() -> None:
        wait_for(lambda: (Path(order.path) / "x.txt").exists())
        assert FileLedger(desk.ledger.state.root).fence(order.runner_id)

    threading.Thread(target=fence).start()
    began = time.monotonic()
    outcome = desk.carry(order)
    assert (outcome.status, outcome.error_kind) == (Status.LOST, "lost") and time.monotonic() - began < 20
    assert outcome.commits == () and (Path(order.path) / "x.txt").exists()
    assert os.listdir(desk.ledger.state.fenced) == []


def test_a_lease_lost_between_two_beats_is_noticed_before_the_commit(desk: Desk) -> None:
    order = desk.order(Task("t", prompt="x"), heartbeat_interval=1000.0)

    def work(place: Place) -> Work:
        (place.workspace.path / "x.txt").write_text("x")
        assert FileLedger(desk.ledger.state.root).fence(order.runner_id)
        return Work()

    outcome = desk.carry(order, work=work)
    assert outcome.status is Status.LOST and outcome.commits == ()
    assert desk.git("rev-parse", order.branch) == desk.git("rev-parse", "main")


# -- the result, and who carries it


def test_the_first_result_is_the_one_that_counts(tmp_path: Path) -> None:
    write_result(tmp_path, first := Outcome("t", Status.LOST, 1, "given up"))
    write_result(tmp_path, Outcome("t", Status.DONE))
    assert read_result(tmp_path) == first and os.listdir(tmp_path) == ["result.json"]


def test_an_attempt_that_was_given_up_is_not_begun(desk: Desk) -> None:
    order = desk.shell("touch ../began")
    write_result(Path(order.folder), Outcome("t", Status.LOST, 1, "its runner died", "lost"))
    outcome = carry(order, desk.ledger)
    assert outcome.status is Status.LOST and not (desk.tmp / "work" / "began").exists()
    assert read_result(Path(order.folder)).error == "its runner died"  # type: ignore[union-attr]


def test_an_attempt_is_taken_once(tmp_path: Path) -> None:
    assert taken_by(tmp_path) is None
    assert [take(tmp_path), take(tmp_path)] == [True, False]
    assert taken_by(tmp_path) == process.identity() and os.listdir(tmp_path) == ["runner.json"]


def test_who_is_short_of_descriptors_puts_nothing_aside(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    folder = state.runs / "run" / "t.1"
    folder.mkdir(parents=True)
    assert take(folder)
    hard, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard[1]))
    try:
        with pytest.raises(StateUnreadable, match="Too many open files") as told:
            taken_by(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, hard)
    with pytest.raises(StateUnreadable):
        put_aside(state, "run", told.value)
    assert taken_by(folder) == process.identity()


def test_who_cannot_be_seen_is_gone_when_nobody_holds_its_lifeline(state_root: Path) -> None:
    """After a boot under another name, or where the directory was copied to: no process here can be its carrier."""
    ledger = FileLedger(state_root)
    carrier = process.identity()._replace(boot_id="another", host="elsewhere")
    assert not process.is_gone(carrier)
    assert is_gone(ledger.state, carrier, "r")
    lease = ledger.register(Request("r"))
    assert not is_gone(ledger.state, carrier, "r")
    ledger.release(lease)


def test_who_takes_many_attempts_writes_once_who_it_is_and_needs_none_of_them_to_stay(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    assert all(map(take, folders[:2])) and not any(map(take, folders[:2]))
    assert os.path.samefile(folders[0] / "runner.json", folders[1] / "runner.json")
    for folder in folders[:2]:
        (folder / "runner.json").unlink()
    assert all(map(take, folders[2:])) and taken_by(folders[3]) == process.identity()
    with pytest.raises(StateUnusable, match=r"runner\.json"):
        take(tmp_path / "gone")


def test_an_order_says_only_what_was_ordered() -> None:
    order = Order("run", Task("t", command=("true",)), 1, "/folder", "/place", mode="none", claims=(Claim("gpu", "0"),))
    assert order.to_dict() == {
        "run_id": "run", "task": {"id": "t", "command": ("true",)}, "attempt": 1, "folder": "/folder",
        "path": "/place", "mode": "none", "claims": [["gpu", "0", False]],
    }  # fmt: skip


def test_a_result_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match=r"result\.json"):
        write_result(tmp_path / "gone", Outcome("t", Status.DONE))


def test_an_order_survives_its_file(desk: Desk) -> None:
    task = Task("t", playbook=(Step("s", ("true",)),), verify=(("a", "b"),), env={"A": "1"}, timeout=1.5)
    order = desk.order(task, claims=(Claim("gpu", "0", True),), setup=(("x",),), agent=("a", "{prompt}"))
    assert Order.from_dict(json.loads(json.dumps(order.to_dict()))) == order


# -- the runner process


class Runner:
    """A runner process as a launcher has it."""

    def __init__(self, desk: Desk) -> None:
        argv = [sys.executable, "-m", "necrocode.runner", str(desk.ledger.state.root)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def give(self, order: Order) -> None:
        (Path(order.folder) / "task.json").write_text(json.dumps(order.to_dict()))
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order.folder) + "\n")
        self.process.stdin.flush()

    def hear(self, until: str) -> list[dict[str, str]]:
        assert self.process.stdout
        said: list[dict[str, str]] = []
        while not said or said[-1]["said"] != until:
            line = self.process.stdout.readline()
            assert line, (said, "the runner said no more")
            said.append(json.loads(line))
        return said

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def test_a_runner_carries_one_after_another_and_survives_its_launcher(desk: Desk) -> None:
    with Runner(desk) as runner:
        runner.give(first := desk.shell("true"))
        assert [one["said"] for one in runner.hear("done")][:2] == ["granted", "prepare"]
        runner.give(second := desk.shell("while [ ! -e go ]; do sleep 0.05; done; echo done > done.txt"))
        runner.hear("work")
        assert runner.process.stdin and runner.process.stdout
        runner.process.stdin.close()
        runner.process.stdout.close()
        Path(second.path, "go").touch()
        assert runner.process.wait(20) == 0
    for order in (first, second):
        outcome = read_result(Path(order.folder))
        assert outcome and outcome.ok
        assert taken_by(Path(order.folder)).pid == runner.process.pid  # type: ignore[union-attr]
    desk.assert_at_rest(second)


def test_sigterm_ends_the_attempt_and_then_the_runner(desk: Desk) -> None:
    with Runner(desk) as runner:
        runner.give(order := desk.shell("sleep 100"))
        runner.hear("work")
        runner.process.terminate()
        last = runner.hear("done")[-1]
        assert last["status"] == "cancelled" and "leaving" in last
        assert runner.process.wait(20) == 0
    desk.assert_at_rest(order)


def test_sigterm_ends_an_idle_runner(desk: Desk) -> None:
    with Runner(desk) as runner:
        runner.give(desk.shell("true"))
        runner.hear("done")
        runner.process.terminate()
        assert runner.process.wait(20) == 0


def test_sigterm_ends_a_wait(desk: Desk) -> None:
    lease = desk.ledger.register(Request("stranger", (Claim("gpu", "0"),)))
    with Runner(desk) as runner:
        runner.give(order := desk.shell("true", terms={"claims": (Claim("gpu", "0"),)}))
        runner.hear("waiting")
        runner.process.terminate()
        assert runner.hear("done")[-1]["status"] == "cancelled"
        assert runner.process.wait(20) == 0
    assert os.listdir(desk.ledger.state.queue) == []
    desk.ledger.release(lease)
    desk.assert_at_rest(order)


def test_an_agent_of_a_runner_can_be_interrupted(desk: Desk) -> None:
    script = "import signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))"
    with Runner(desk) as runner:
        runner.give(order := desk.order(Task("t", command=(sys.executable, "-c", script))))
        runner.hear("done")
    said = (Path(order.folder) / "stdout.log").read_text()
    assert "default_int_handler" in said and str(signal.SIG_DFL) in said


def test_what_a_runner_cannot_carry_is_told_and_the_next_one_carried(desk: Desk) -> None:
    with Runner(desk) as runner:
        broken = desk.shell("true")
        runner.give(broken)
        runner.hear("done")
        runner.give(broken)
        assert "somebody else" in runner.hear("refused")[-1]["error"]
        unreadable = desk.shell("true")
        (Path(unreadable.folder) / "task.json").write_text("{")
        assert runner.process.stdin
        runner.process.stdin.write(json.dumps(unreadable.folder) + "\n")
        runner.process.stdin.flush()
        assert "task.json" in runner.hear("broken")[-1]["error"]
        runner.give(desk.shell("true"))
        assert runner.hear("done")[-1]["status"] == "done"


def test_an_agent_that_hangs_after_it_told_its_result_is_ended_and_has_done_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_room, "LINGER", 0.3)
    agent = ("sh", "-c", 'echo made > made.txt; echo \'{"type":"result"}\'; exec sleep 600', "{prompt}")
    outcome = desk.carry(desk.order(Task("t", prompt="do"), agent=agent, result_mark='"type":"result"'))
    assert outcome.ok and outcome.files_changed == ("made.txt",)
