"""From a task file and wishes to a plan: what is refused, and what the plan says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from byhand import sh

from necrocode import launcher, process, workspace
from necrocode.claim import Claim
from necrocode.errors import ConfigError, NecrocodeError, Refused
from necrocode.launch import AgentMissing, Draft, Wishes, draft, presets
from necrocode.ledger import lifeline
from necrocode.runs import new_run, run_folder
from necrocode.statedir import StateDir, to_json
from necrocode.task import parse_tasks
from necrocode.wanted import wanted
from necrocode.work import filled


def drafted(text: str, where: Path, **wishes: object) -> Draft:
    return draft(parse_tasks(text, name="tasks.toml"), Wishes(**wishes), where)  # type: ignore[arg-type]


def one(extra: str = "", head: str = "") -> str:
    return f'{head}[[task]]\nid = "a"\ncommand = ["true"]\n{extra}\n'


def test_a_plan_starts_from_the_branch_one_is_on(repository: Path) -> None:
    plan, notes = drafted(one('files = ["src/a.py", "src/"]\nclaims = ["port:80"]'), repository)
    assert plan.base == sh("git", "rev-parse", "main", cwd=repository) and plan.base_name == "main"
    assert (plan.mode, plan.repository, plan.directory) == ("worktree", str(repository), f"{repository}.worktrees")
    assert {str(claim).partition(":")[0] for claim in plan.claims["a"]} == {"file", "port"} and notes == ()
    assert plan.source.endswith("/tasks.toml") and plan.jobs >= 1


@pytest.mark.parametrize(
    ("wishes", "head", "jobs"), [({}, "[defaults]\njobs = 7\n", 7), ({"jobs": 3}, "[defaults]\njobs = 7\n", 3)]
)
def test_how_many_at_once(repository: Path, wishes: dict[str, int], head: str, jobs: int) -> None:
    assert drafted(one(head=head), repository, **wishes).plan.jobs == jobs


@pytest.mark.parametrize("head", ["", '[defaults]\nworkspace = "none"\n'])
def test_how_tasks_are_isolated_is_said_by_the_command_line_last(repository: Path, head: str) -> None:
    plan = drafted(one('workspace = "none"' if not head else "", head), repository, mode="clone").plan
    assert [plan.mode_of(task) for task in plan.tasks] == ["clone"]


@pytest.mark.parametrize("mode", ["worktree", "none"])
def test_names_and_work_are_at_the_repositorys_root_wherever_one_stands(repository: Path, mode: workspace.Mode) -> None:
    """The command works there, so `a.py` is the root's, not that of the directory somebody was in."""
    text = one('files = ["a.py"]\nclaims = ["shared:file:src", "workspace:tree"]')
    (here, _), (there, _) = (drafted(text, where, mode=mode) for where in (repository / "src", repository))
    assert here.claims == there.claims and here.repository == there.repository == str(repository)
    assert [claim.path for claim in here.claims["a"][:2]] == ["a.py", "src/**"]
    assert mode == "worktree" or here.place(here.task("a")) == str(repository)


def test_work_in_another_place_than_one_stands_in_is_told(repository: Path, tmp_path: Path) -> None:
    (note,) = drafted(one(), repository / "src", mode="none").notes
    assert note == f"tasks work in {repository}, the top of the repository"
    (tmp_path / "up" / ".git").mkdir(parents=True)  # no repository, whatever its name
    here = tmp_path / "up" / "here"
    here.mkdir()
    plan, notes = drafted(one('files = ["o"]'), here, mode="none")
    assert (plan.repository, notes) == (str(here), ())


def test_a_task_claims_what_a_command_with_the_same_words_claims(repository: Path) -> None:
    sh("git", "config", "core.ignorecase", "true", cwd=repository)
    claims = ["file:src", "shared:file:SRC/", f"file:{repository}/src/A.py", "file:/etc/hosts", "branch:Fix",
              "shared:branch:fix", "workspace:tree", "workspace:../tree", "port:80"]  # fmt: skip
    planned = drafted(one(f'files = ["src"]\nclaims = {claims}\nbranch = "Mine"'), repository).plan.claims["a"]
    assert planned == wanted(claims, ["src"], ["Mine"], repository)
    assert {str(claim) for claim in planned} == {
        "file:src/**", "shared:file:src/**", "file:src/a.py", "file:etc/hosts", "branch:fix", "shared:branch:fix",
        f"workspace:{repository}/tree", f"workspace:{repository.parent}/tree", "port:80", "branch:mine",
    }  # fmt: skip


def test_what_is_not_committed_is_told(repository: Path) -> None:
    (repository / "README.md").write_text("changed\n")
    (note,) = drafted(one(), repository).notes
    assert "1 uncommitted change" in note


def test_a_detached_head_is_told(repository: Path) -> None:
    sh("git", "checkout", "-q", "--detach", cwd=repository)
    plan, notes = drafted(one(), repository)
    assert plan.base_name == "HEAD" and "detached" in notes[0]


def test_another_base(repository: Path) -> None:
    sh("git", "tag", "v1", "HEAD^", cwd=repository)
    assert drafted(one(), repository, base="v1").plan.base == sh("git", "rev-parse", "v1", cwd=repository)
    with pytest.raises(ConfigError, match="nowhere"):
        drafted(one(), repository, base="nowhere")


def test_no_repository_no_commit_and_a_bare_one_are_told(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(ConfigError) as told:
        drafted(one(), tmp_path)
    assert told.value.hint
    (tmp_path / "empty").mkdir()
    sh("git", "init", "-q", cwd=tmp_path / "empty")
    with pytest.raises(ConfigError, match="no commit") as told:
        drafted(one(), tmp_path / "empty")
    assert "git commit" in told.value.hint
    sh("git", "clone", "-q", "--bare", str(repository), "bare.git", cwd=tmp_path)
    with pytest.raises(ConfigError, match="bare"):
        drafted(one(), tmp_path / "bare.git")


def test_without_workspaces_no_repository_is_needed(tmp_path: Path) -> None:
    plan, notes = drafted(one('files = ["x"]'), tmp_path, mode="none")
    assert (plan.mode, plan.repository, notes) == ("none", str(tmp_path), ()) and plan.claims["a"]
    assert drafted(one('workspace = "none"'), tmp_path).plan.claims == {"a": ()}


def test_without_a_repository_files_are_places_as_they_are_for_everybody_else(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    plan = drafted(one('files = ["a.txt", "sub"]\nclaims = ["file:*.py"]'), tmp_path, mode="none").plan
    top = str(tmp_path).removeprefix("/")
    assert plan.claims["a"] == tuple(Claim("file:/", f"{top}/{name}") for name in ("a.txt", "sub/**", "*.py"))
    assert plan.claims["a"] == wanted(["file:*.py"], ["a.txt", "sub"], where=tmp_path)
    assert plan.place(plan.task("a")) == str(tmp_path)


def test_git_is_asked_for_nothing_by_tasks_in_place_that_claim_nothing_of_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").write_text("what no git could open\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    text = one('workspace = "none"\nclaims = ["port:80"]').replace('"true"', f'"{sys.executable}"')
    assert drafted(text, tmp_path).plan.repository == str(tmp_path)
    with pytest.raises(ConfigError, match="git"):
        drafted(text.replace("port:80", "file:a"), tmp_path)


def test_only_some_and_what_they_come_after_counts_as_done(repository: Path) -> None:
    text = one() + '[[task]]\nid = "b"\ncommand = ["true"]\nafter = ["a"]\n'
    plan, notes = drafted(text, repository, only=("b",))
    assert [(task.id, task.after) for task in plan.tasks] == [("b", ())] and "a" in notes[0]
    with pytest.raises(ConfigError, match="nope"):
        drafted(text, repository, only=("nope",))


def test_a_time_for_each_attempt_instead_of_the_files(repository: Path) -> None:
    assert drafted(one("timeout = 5"), repository, timeout=2.0).plan.task("a").timeout == 2.0
    assert drafted(one("timeout = 5"), repository).plan.task("a").timeout == 5.0


@pytest.mark.parametrize(
    ("branch", "said"),
    [("a..b", "a..b"), ("-x", "-x"), ("refs/heads/", "branch"), ("x.lock", "x.lock"), ("a b", "a b")],
)
def test_a_branch_that_git_would_refuse(repository: Path, branch: str, said: str) -> None:
    with pytest.raises(NecrocodeError, match=said):
        drafted(one(f'branch = "{branch}"'), repository)


def test_a_branch_that_is_checked_out_elsewhere_is_refused(repository: Path) -> None:
    with pytest.raises(ConfigError, match=f"task a: branch main is checked out in {repository}"):
        drafted(one('branch = "main"'), repository)
    sh("git", "checkout", "-q", "--detach", cwd=repository)
    assert drafted(one('branch = "main"'), repository).plan.tasks
    assert drafted(one('branch = "x"\nworkspace = "none"'), repository).plan.tasks


@pytest.mark.parametrize(
    ("there", "branch", "said"),
    [
        ("x", "x/y", "x/y beside x"), ("x/y", "x", "x beside x/y"),
        ("necrocode", "", "necrocode/RUN/a beside necrocode"), ("xy", "x", ""), ("x", "x", ""), ("x/z", "x/y", ""),
    ],
)  # fmt: skip
def test_a_branch_that_cannot_be_beside_another_is_refused(
    repository: Path, there: str, branch: str, said: str
) -> None:
    sh("git", "branch", there, cwd=repository)
    text = one(f'branch = "{branch}"' if branch else "")
    if not said:
        assert drafted(text, repository).plan.tasks
        return
    with pytest.raises(ConfigError, match=f"{said}, which is there"):
        drafted(text, repository)


def test_branches_of_two_tasks_that_cannot_be_beside_each_other_are_refused(repository: Path) -> None:
    text = one('branch = "x"') + '[[task]]\nid = "b"\ncommand = ["true"]\nbranch = "x/y"\n'
    with pytest.raises(ConfigError, match="task a: there cannot be a branch x beside x/y, that of b"):
        drafted(text, repository)


@pytest.mark.parametrize("task_id", ["a..b", "x.lock", "x."])
def test_an_id_that_can_be_no_branch_is_refused_before_anything_is_touched(repository: Path, task_id: str) -> None:
    text = one().replace('"a"', f'"{task_id}"')
    with pytest.raises(ConfigError) as told:
        drafted(text, repository)
    assert task_id in str(told.value)


# -- agents


PROMPT = '[[task]]\nid = "a"\nprompt = "do it"\n'


def test_an_agent_is_a_known_name_or_a_command_line(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = drafted(PROMPT, repository, agent="sh -c 'echo \"$0\"' {prompt}").plan
    assert plan.agents[plan.task("a").agent] == ("sh", "-c", 'echo "$0"', "{prompt}")
    tools = repository.parent / "bin"
    tools.mkdir()
    (tools / "claude").write_text("#!/bin/sh\n")
    (tools / "claude").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    plan = drafted(PROMPT + 'agent = "claude"\n', repository).plan
    assert plan.agents["claude"] == presets()["claude"]


def test_a_prompt_needs_an_agent(repository: Path) -> None:
    with pytest.raises(ConfigError, match="no agent") as told:
        drafted(PROMPT, repository)
    assert "claude" in told.value.hint and "{prompt}" in told.value.hint


def test_an_agent_that_is_neither_known_nor_a_command_line(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--agent: agent 'claudius' is neither known"):
        drafted(PROMPT, repository, agent="claudius")
    with pytest.raises(ConfigError, match="quotation"):
        drafted(PROMPT, repository, agent="sh -c 'open {prompt}")


@pytest.mark.parametrize("text", [PROMPT, PROMPT + "agent = \"env bash -ec 'echo {title}'\"\n"])
def test_an_agent_whose_shell_would_read_the_prompt_is_refused(repository: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="stands in the script of") as told:
        drafted(text, repository, agent="" if "agent" in text else "sh -c 'echo {prompt}'")
    assert str(told.value).startswith("tasks.toml:4: task 'a': " if "agent" in text else "--agent: ")


def test_a_step_whose_shell_would_read_a_text_is_refused(repository: Path) -> None:
    text = '[[task]]\nid = "a"\nplaybook = [{name = "s", command = ["sh", "-c", "echo ${title}"]}]\n'
    with pytest.raises(ConfigError, match=r"task 'a', step 's': \$\{title\} stands in the script of sh") as told:
        drafted(text, repository)
    assert "sh -c '... \"$1\"' sh ${title}" in told.value.hint


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (PROMPT + 'agent = "AGENT"\n', "tasks.toml:4: task 'a': "),
        ('[defaults]\nagent = "AGENT"\n' + PROMPT, "tasks.toml:2: task 'a': "),
        (PROMPT.replace("do it", "AGENT"), "tasks.toml:1: task 'a': it has a prompt, but no agent is named"),
    ],
)
def test_a_wrong_agent_is_told_where_it_stands(repository: Path, text: str, place: str) -> None:
    for agent in ("claudius", "no-such-agent {prompt}"):
        with pytest.raises(NecrocodeError) as told:
            drafted(text.replace("AGENT", agent), repository)
        assert str(told.value).startswith(place)


@pytest.mark.parametrize(("program", "code"), [("no-such-agent", 127), ("./README.md", 126)])
def test_an_agent_that_cannot_be_started_is_refused(repository: Path, program: str, code: int,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(repository)
    with pytest.raises(AgentMissing, match=program) as told:
        drafted(PROMPT, repository, agent=f"{program} {{prompt}}")
    assert told.value.exit_code == code


def test_every_preset_puts_the_prompt_into_an_argument(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from necrocode.task import Task

    place = SimpleNamespace(task=Task("t", prompt="-x"), workspace=SimpleNamespace(path=tmp_path, branch="b"))
    for name, argv in presets().items():
        assert sum("{prompt}" in argument for argument in argv) == 1, name
        assert not any("{" in argument for argument in filled(argv, place)), name  # type: ignore[arg-type]


def test_a_launcher_that_has_only_just_begun_is_named_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lock a moment before it says who it is; what one who has ended said stands there until then."""
    monkeypatch.setattr(launcher, "_MOMENT", 30.0)
    path = tmp_path / "launcher.json"
    ended = subprocess.Popen(["true"])
    ended.wait()
    ours = process.identity()
    path.write_bytes(to_json({**ours._asdict(), "pid": ended.pid}))
    threading.Timer(0.1, lambda: path.write_bytes(to_json(ours._asdict()))).start()
    assert launcher.named(path) == ours


def test_who_only_looks_keeps_no_launcher_out(tmp_path: Path) -> None:
    """`status` looks whether runs are followed; whoever does follow is told of, all the same."""
    state = StateDir(tmp_path / "state")
    run_id = new_run(state)
    path = run_folder(state, run_id) / "launcher.json"
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            lifeline.is_held(path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            with launcher.alone(state, run_id):
                assert lifeline.is_held(path)
        with launcher.alone(state, run_id), pytest.raises(Refused, match=f"pid {os.getpid()} "):
            launcher.alone(state, run_id).__enter__()
    finally:
        over.set()
        looking.join()


@pytest.mark.parametrize("text", ["", "[]", '{"pid": []}', "{"])
def test_a_launcher_that_says_nothing_is_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(launcher, "_MOMENT", 0.0)
    (tmp_path / "launcher.json").write_text(text)
    assert launcher.named(tmp_path / "launcher.json") is None
