"""Task files by tables: what is read, and what is said about what cannot be."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.claim import Claim
from necrocode.errors import ConfigError
from necrocode.task import Defaults, Step, Task, TaskFile, parse_tasks
from necrocode.taskfile import read_tasks
from necrocode.taskmodels import schema

FULL = """
[defaults]
agent = "scripted"
timeout = 60
retries = 2
verify = "pytest -q"
workspace = "clone"
env = { A = "1", B = "2" }
setup = ["pip install -e .", ["echo", "two words"]]
jobs = 4

[[task]]
id = "one"
title = "First"
spec = "spec"
prompt = "Do it; rm -rf / `now`"
files = ["src/a.py", "docs/"]
claims = ["port:8080", "shared:gpu:0"]
branch = "feature/one"
priority = -50
timeout = 1.5
silent_timeout = 3
retries = 0
verify = []
tags = ["quick"]
[task.env]
B = "3"

[[task]]
id = "two"
command = "grep -n 'two words' \\"a b\\" ; echo"
after = ["one"]
workspace = "none"

[[task]]
id = "three"
agent = "other"
after = ["one", "two"]
[[task.playbook]]
name = "build"
command = "make all"
[[task.playbook]]
name = "test"
command = ["pytest", "-q"]
condition = "mode == full"
fail_fast = false
timeout_seconds = 5
retry_count = 1
"""

ENV = {"A": "1", "B": "2"}
READ = TaskFile(
    (
        Task(
            "one",
            prompt="Do it; rm -rf / `now`",
            agent="scripted",
            files=("src/a.py", "docs/"),
            claims=("port:8080", "shared:gpu:0"),
            branch="feature/one",
            priority=-50,
            timeout=1.5,
            silent_timeout=3.0,
            retries=0,
            tags=("quick",),
            env={"A": "1", "B": "3"},
            workspace="clone",
            title="First",
            spec="spec",
        ),
        Task(
            "two",
            command=("grep", "-n", "two words", "a b", ";", "echo"),
            after=("one",),
            timeout=60.0,
            retries=2,
            verify=(("pytest", "-q"),),
            env=ENV,
            workspace="none",
        ),
        Task(
            "three",
            playbook=(
                Step("build", ("make", "all")),
                Step("test", ("pytest", "-q"), "mode == full", False, 5.0, 1),
            ),
            agent="other",
            after=("one", "two"),
            timeout=60.0,
            retries=2,
            verify=(("pytest", "-q"),),
            env=ENV,
            workspace="clone",
        ),
    ),
    Defaults(
        agent="scripted",
        timeout=60.0,
        retries=2,
        verify=(("pytest", "-q"),),
        workspace="clone",
        env=ENV,
        setup=(("pip", "install", "-e", "."), ("echo", "two words")),
        jobs=4,
    ),
    "tasks.toml",
    {"one": 3, "two": 3, "three": 37},
)


def test_everything_a_file_may_say():
    assert parse_tasks(FULL, format="toml", name="tasks.toml") == READ


def test_the_other_formats_say_the_same():
    import tomllib

    yaml = pytest.importorskip("yaml")
    data = tomllib.loads(FULL)
    for format, text in (("json", json.dumps(data)), ("json", json.dumps(data, indent=2)), ("yaml", yaml.dump(data))):
        assert parse_tasks(text, format=format, name="tasks.toml")[:3] == READ[:3]


BARE = Task("a", command=("true",))


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("toml", '[[task]]\nid = "a"\ncommand = "true"'),
        ("toml", '\ufeff[[task]]\r\nid = "a"\r\ncommand = "true"\r\n'),
        ("toml", 'task = [{id = "a", command = ["true"]}]'),
        ("json", '[{"id": "a", "command": "true"}]'),
        ("json", '{"$schema": "tasks.schema.json", "task": [{"id": "a", "command": "true"}]}'),
        ("jsonl", '\n{"id": "a", "command": "true"}\n\n'),
        ("yaml", "- id: a\n  command: 'true'\n"),
        ("yaml", "task:\n- {id: a, command: ['true']}\n"),
    ],
)
def test_ways_to_write_one_task(format, text):
    assert parse_tasks(text, format=format).tasks == (BARE,)


def test_a_task_survives_json():
    for task in READ.tasks:
        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert Task.from_dict({"id": "a", "later": 1}) == Task("a")
    for wrong in ({}, {"id": "a", "playbook": [{"name": "x"}]}):
        with pytest.raises((KeyError, TypeError)):
            Task.from_dict(wrong)


def test_what_a_task_wants():
    task = Task("a", files=("src/a.py", "docs/"), claims=("port:1", "file:src/a.py"), branch="b")
    assert task.wanted("R") == (
        Claim("file:R", "src/a.py"),
        Claim("file:R", "docs/**"),
        Claim("port", "1"),
        Claim("branch:R", "b/**"),
    )
    assert Task("a").wanted() == ()


def task(text):
    return f'[[task]]\nid = "a"\n{text}\n'


RUN = 'command = "true"'

WRONG = {
    "misspelt key": (task(f"{RUN}\ntimout = 3"), "4: task 'a': timout: unknown key, did you mean 'timeout'?"),
    "unknown key": (task(f"{RUN}\nqqq = 3"), "4: task 'a': qqq: unknown key"),
    "key of a step": (
        task('[[task.playbook]]\nname = "x"\ncommand = "true"\ntimeout = 3'),
        "6: task 'a': playbook[0].timeout: unknown key, did you mean 'timeout_seconds'?",
    ),
    "misspelt table": ('[[tasks]]\nid = "a"', "1: tasks: unknown key, did you mean 'task'?"),
    "misspelt default": (
        f"[defaults]\nretry = 1\n{task(RUN)}",
        "2: defaults.retry: unknown key, did you mean 'retries'?",
    ),
    "id missing": (f"[[task]]\n{RUN}", "1: task number 1: id: is missing"),
    "id a number": (f"[[task]]\nid = 1\n{RUN}", "2: task number 1: id: must be text, not 1"),
    "id with a dot first": (f'[[task]]\nid = ".a"\n{RUN}', "2: task '.a': id: must be 1 to 64 letters"),
    "id with a slash": (f'[[task]]\nid = "a/b"\n{RUN}', "2: task 'a/b': id: must be 1 to 64 letters"),
    "id with a line end": (f'[[task]]\nid = "a\\n"\n{RUN}', "task 'a\\n': id: must be 1 to 64 letters"),
    "id empty": (f'[[task]]\nid = ""\n{RUN}', "2: task '': id: must be 1 to 64 letters"),
    "id too long": (f'[[task]]\nid = "{"a" * 65}"\n{RUN}', "id: must be 1 to 64 letters"),
    "id no branch": (f'[[task]]\nid = "a..b"\n{RUN}', "2: task 'a..b': id: 'a..b' cannot be part of a branch's name"),
    "id twice": (task(RUN) + task(RUN), "5: task 'a': id: 'a' is already the id of the task on line 2"),
    "nothing to do": (task(""), "1: task 'a': give exactly one of prompt, command and playbook, not none"),
    "two things to do": (task(f'{RUN}\nprompt = "x"'), "playbook, not prompt and command"),
    "prompt empty": (task('prompt = ""'), "3: task 'a': prompt: must not be empty"),
    "prompt a list": (task('prompt = ["x"]'), "3: task 'a': prompt: must be text, not a list"),
    "command a number": (task("command = 3"), "3: task 'a': command: must be text, or a list of texts, not 3"),
    "command with a number": (
        task('command = ["x", 3]'),
        "command: must be text, or a list of texts, not a list with 3",
    ),
    "command unbalanced": (
        task('command = "echo \'x"'),
        "command: cannot be split into arguments: No closing quotation",
    ),
    "command empty": (task('command = ""'), "3: task 'a': command: must not be empty"),
    "command blank": (task('command = "  "'), "3: task 'a': command: does not name a program"),
    "command of nothing": (task("command = []"), "3: task 'a': command: must not be empty"),
    "command with NUL": (task('command = ["echo", "a\\u0000"]'), "3: task 'a': command[1]: has a NUL character"),
    "playbook empty": (task("playbook = []"), "3: task 'a': playbook: must not be empty"),
    "verify a number": (task(f"{RUN}\nverify = 3"), "4: task 'a': verify: must be a list of commands, not 3"),
    "verify unbalanced": (task(f'{RUN}\nverify = ["a", "\'"]'), "4: task 'a': verify[1]: cannot be split"),
    "timeout negative": (task(f"{RUN}\ntimeout = -1"), "4: task 'a': timeout: must be more than 0, not -1"),
    "timeout zero": (task(f"{RUN}\ntimeout = 0"), "4: task 'a': timeout: must be more than 0, not 0"),
    "timeout text": (task(f'{RUN}\ntimeout = "5"'), "4: task 'a': timeout: must be a number, not '5'"),
    "timeout endless": (task(f"{RUN}\ntimeout = inf"), "4: task 'a': timeout: must be a finite number, not inf"),
    "timeout no number": (task(f"{RUN}\ntimeout = nan"), "4: task 'a': timeout: must be "),
    "timeout true": (task(f"{RUN}\ntimeout = true"), "4: task 'a': timeout: must be a number, not true"),
    "retries negative": (task(f"{RUN}\nretries = -1"), "4: task 'a': retries: must be at least 0, not -1"),
    "retries half": (task(f"{RUN}\nretries = 1.5"), "4: task 'a': retries: must be a whole number, not 1.5"),
    "priority high": (task(f"{RUN}\npriority = 50"), "4: task 'a': priority: must be at most 49, not 50"),
    "priority low": (task(f"{RUN}\npriority = -51"), "4: task 'a': priority: must be at least -50, not -51"),
    "after a text": (task(f'{RUN}\nafter = "b"'), "4: task 'a': after: must be a list, not 'b'"),
    "after nobody": (task(f'{RUN}\nafter = ["b"]'), "4: task 'a': after[0]: there is no task 'b'"),
    "after a misspelt": (
        task(RUN) + f'[[task]]\nid = "build"\n{RUN}\nafter = []\n[[task]]\nid = "c"\n{RUN}\nafter = ["biuld"]',
        "11: task 'c': after[0]: there is no task 'biuld', did you mean 'build'?",
    ),
    "after itself": (task(f'{RUN}\nafter = ["a"]'), "4: task 'a': after: a after a would never end"),
    "circle": (
        task(f'{RUN}\nafter = ["b"]') + f'[[task]]\nid = "b"\n{RUN}\nafter = ["a"]',
        "after: a after b after a would never end",
    ),
    "claim without kind": (task(f'{RUN}\nclaims = ["gpu"]'), "4: task 'a': claims[0]: 'gpu' is not a claim"),
    "file outside": (task(f'{RUN}\nfiles = ["ok", "../x"]'), "files[1]: '../x' leaves the directory"),
    "branch": (task(f'{RUN}\nbranch = "a..b"'), "4: task 'a': branch: 'a..b' cannot be a branch's name"),
    "branch like an option": (task(f'{RUN}\nbranch = "--upload"'), "'--upload' cannot be a branch's name"),
    "workspace": (task(f'{RUN}\nworkspace = "clon"'), "'clone' or 'none', not 'clon', did you mean 'clone'?"),
    "env a number": (task(f"{RUN}\nenv = {{A = 1}}"), "4: task 'a': env.A: must be text, not 1"),
    "env name": (task(f'{RUN}\nenv = {{"A=B" = "1"}}'), "env.A=B: 'A=B' cannot be the name of an environment"),
    "env table": (task(f"{RUN}\n[task.env]\nA = 1"), "5: task 'a': env.A: must be text, not 1"),
    "jobs": (f"[defaults]\njobs = 0\n{task(RUN)}", "2: defaults.jobs: must be at least 1, not 0"),
    "setup": (
        f"[defaults]\nsetup = [3]\n{task(RUN)}",
        "2: defaults.setup: must be a list of commands, not a list with 3",
    ),
    "defaults a list": (f"defaults = [3]\n{task(RUN)}", "1: defaults: must be a table, not a list"),
    "one table": (f'[task]\nid = "a"\n{RUN}', "1: task: must be a list of tasks; in TOML, each begins with [[task]]"),
    "a task a number": ("task = [3]", "1: task number 1: must be a table, not 3"),
    "no task": ("task = []", "tasks: has no tasks; write at least one"),
    "verify of nothing": (
        task(f"{RUN}\nverify = [[]]"),
        "4: task 'a': verify: must be a list of commands, not a list with an empty command",
    ),
    "verify of a number": (
        task(f'{RUN}\nverify = ["ok", ["a", 3]]'),
        "4: task 'a': verify: must be a list of commands, not a list with a command with 3",
    ),
    "only defaults": ("[defaults]\njobs = 3", "tasks: task: must be a list of tasks"),
    "long string before": (task('prompt = """\n[[task]]\nx = 1\n"""\nqqq = 1'), "7: task 'a': qqq: unknown key"),
    "syntax": ("[[task]]\nid = = 3", "2: this is not TOML: Invalid value"),
    "key twice": ('[[task]]\nid = "a"\nid = "b"', "3: this is not TOML: Cannot overwrite a value"),
    "endless number": (task(f"{RUN}\ntimeout = {'9' * 5000}"), "this is not TOML: Exceeds the limit"),
    "deep names": (f"{'.'.join('a' * 5000)} = 1", "tasks: it is nested too deeply"),
    "deep": (f"a = {'[' * 9000}{']' * 9000}", "it is nested too deeply"),
    "empty": ("", "tasks: the file is empty"),
    "blank": (" \n\t\n", "tasks: the file is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_said_about_mistakes(case):
    text, expected = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        parse_tasks(text, name="tasks")
    assert expected in str(caught.value)
    assert all(line.startswith("tasks:") for line in str(caught.value).splitlines())
    assert caught.value.where.startswith("tasks")


WRONG_ELSEWHERE = {
    "json syntax": ("json", '[\n{"id": "a",}]', "t:2: this is not JSON: "),
    "json key": (
        "json",
        '[\n {"id": "a",\n  "command": "true",\n  "timout": 3}]',
        "t:4: task 'a': timout: unknown key",
    ),
    "json second": (
        "json",
        '{"task": [{"id": "a",\n"command": "x"},\n{"id": "b", "command": ["x"],\n"verify":\n[["a"], [1]]}]}',
        "t:4: task 'b': verify: must be a list of commands",
    ),
    "json key twice": ("json", '[{"id": "a",\n"id": "b", "command": "x"}]', "t:2: task 'b': id: is there twice"),
    "json NaN": ("json", '[{"id": "a", "command": "x", "timeout": NaN}]', "t:1: task 'a': timeout: must be "),
    "json text": ("json", '"x"', "t: the file must hold a list of tasks"),
    "json null": ("json", "null", "t: the file must hold a list of tasks"),
    "json list in list": ("json", '[["id", "a"]]', "t:1: task number 1: must be a table, not a list"),
    "json half a character": (
        "json",
        '[{"id": "a", "prompt": "\\ud800"}]',
        "t:1: task 'a': prompt: has half a character",
    ),
    "json deep lists": ("json", f'{{"task": {"[" * 400}{"]" * 400}}}', "t: it is nested too deeply"),
    "json no task": ("json", "[]", "t: has no tasks; write at least one"),
    "json deep": ("json", "[" * 100_000, "t: it is nested too deeply"),
    "jsonl syntax": ("jsonl", '{"id": "a", "command": "x"}\n\n{"id": }', "t:3: this is not JSON"),
    "jsonl key": ("jsonl", '\n{"id": "a",  "command": "x", "q": 1}', "t:2: task 'a': q: unknown key"),
    "jsonl twice": ("jsonl", '{"id":"a","command":"x"}\n{"id":"a","command":"x"}', "t:2: task 'a': id: 'a' is already"),
    "jsonl list": ("jsonl", "[1]", "t:1: task number 1: must be a table, not a list"),
    "yaml syntax": ("yaml", "- id: a\n  command: [\n", "t:3: this is not YAML"),
    "yaml no": ("yaml", "- id: no\n  command: x", "t:1: task number 1: id: must be text, not false"),
    "yaml 1.10": ("yaml", "- id: 1.10\n  command: x", "t:1: task number 1: id: must be text, not 1.1"),
    "yaml date": ("yaml", "- id: 2024-01-01\n  command: x", "id: must be text, not 2024-01-01"),
    "yaml env": (
        "yaml",
        "- id: a\n  command: x\n  env:\n    DEBUG: on",
        "t:4: task 'a': env.DEBUG: must be text, not true",
    ),
    "yaml key": ("yaml", "- id: a\n  command: x\n  on: 1", "t:3: 'on' is not text, and cannot be a key"),
    "yaml key twice": ("yaml", "- id: a\n  id: b\n  command: x", "t:2: task 'b': id: is there twice"),
    "yaml unknown": ("yaml", "- id: a\n  command: x\n  timout: 1", "t:3: task 'a': timout: unknown key"),
    "yaml object": ("yaml", "- !!python/object/apply:os.system ['true']", "t:1: this is not YAML"),
    "yaml two": ("yaml", "- a\n---\n- b", "t:2: this is not YAML"),
    "yaml nothing": ("yaml", "# only a comment", "t: the file is empty"),
    "yaml unfolding": (
        "yaml",
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "t: it unfolds to too much",
    ),
    "yaml round": ("yaml", "task: &a [*a]", "t: it unfolds to too much"),
}


@pytest.mark.parametrize("case", WRONG_ELSEWHERE)
def test_what_is_said_in_other_formats(case, monkeypatch):
    monkeypatch.setattr("necrocode.tasktext.MOST_VALUES", 10_000)
    format, text, expected = WRONG_ELSEWHERE[case]
    with pytest.raises(ConfigError) as caught:
        parse_tasks(text, format=format, name="t")
    assert expected in str(caught.value)


def test_all_mistakes_at_once_in_the_order_of_the_file():
    text = task(f"{RUN}\nq = 1\nafter = ['x']") + f'[[task]]\nid = "b"\nprompt = 3\nclaims = ["y"]\n{RUN}'
    with pytest.raises(ConfigError) as caught:
        parse_tasks(text, name="t")
    places = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert places == ["t:4", "t:5", "t:6", "t:8", "t:9"]


@pytest.mark.parametrize(
    "told", ['"prompt": "\\ud800"', '"command": ["x", "\\ud800"]', '"prompt": "x", "env": {"A": "\\ud800"}']
)
def test_half_a_character_is_told_once(told):
    with pytest.raises(ConfigError) as caught:
        parse_tasks(f'[{{"id": "a", {told}}}]', format="json", name="t")
    (line,) = str(caught.value).splitlines()
    assert line.endswith("has half a character (a lone surrogate)")


def test_no_more_than_twenty_are_told():
    text = "".join(f'[[task]]\nid = "t{n}"\n' for n in range(50))
    with pytest.raises(ConfigError) as caught:
        parse_tasks(text, name="t")
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "t: and 30 more"


def test_yaml_without_pyyaml_names_the_extra():
    code = (
        "import sys; sys.modules['yaml'] = None\n"
        "from necrocode.task import parse_tasks\n"
        "try: parse_tasks('- id: a', format='yaml', name='t')\n"
        "except Exception as error: print(error, '|', error.hint)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "t: YAML needs PyYAML, which is not installed | pip install 'necrocode[yaml]'\n"


FILES = {
    "a.toml": (FULL.encode(), None),
    "a.JSON": (b'[{"id": "a", "command": "x"}]', None),
    "a.ndjson": (b'{"id": "a", "command": "x"}', None),
    "a.yml": (b"- {id: a, command: x}", None),
    "empty.toml": (b"", "empty.toml: the file is empty"),
    "latin.toml": (b'[[task]]\nid = "caf\xe9"', "latin.toml:2: byte 0xe9 is not UTF-8"),
    "utf16.json": ("[]".encode("utf-16"), "utf16.json:1: byte 0xff is not UTF-8"),
    "a.txt": (b"", "'.txt' does not say what format it has"),
    "a.tml": (b"", "'.tml' does not say what format it has, did you mean '.toml'?"),
    "a": (b"", "'no ending' does not say what format it has"),
    "gone.toml": (None, "gone.toml: it cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("name", FILES)
def test_reading_a_file(name, tmp_path):
    content, expected = FILES[name]
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    if expected is None:
        assert read_tasks(file).tasks and read_tasks(str(file)).name == str(file)
        return
    with pytest.raises(ConfigError) as caught:
        read_tasks(file)
    assert expected in str(caught.value)


def test_reading_what_is_no_file(tmp_path):
    (tmp_path / "tasks.toml").write_text(task(RUN))
    with pytest.raises(ConfigError, match="it is a directory"):
        read_tasks(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_tasks(tmp_path / "task.toml")
    assert caught.value.hint == "did you mean 'tasks.toml'?"
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(ConfigError, match="it cannot be read: Too many levels of symbolic links"):
        read_tasks(tmp_path / "loop.toml")


def test_the_schema_knows_every_key_and_says_what_it_means():
    keys = schema()["$defs"]["TaskModel"]["properties"]
    assert set(keys) == set(Task._fields)
    assert set(schema()["$defs"]["DefaultsModel"]["properties"]) == set(Defaults._fields)
    for table in ("TaskModel", "DefaultsModel", "StepModel"):
        described = schema()["$defs"][table]["properties"]
        assert all("description" in value or table == "StepModel" for value in described.values())
        assert schema()["$defs"][table]["additionalProperties"] is False
    json.dumps(schema())


TEXT = st.text("ab:/.*'-= \0\ud800\u00e9", max_size=5)
ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXT | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*Task._fields, *Defaults._fields, "timout"])
ITEMS = st.dictionaries(KEYS, ODD, max_size=4)


@given(st.lists(ITEMS, max_size=3), ITEMS)
def test_any_data_is_read_or_refused_in_words(items, defaults):
    for text in (json.dumps({"task": items, "defaults": defaults}), json.dumps(items, indent=1)):
        try:
            parse_tasks(text, format="json", name="t")
        except ConfigError as error:
            assert str(error).startswith("t")


@given(st.sampled_from(["toml", "json", "jsonl", "yaml"]), st.text("[]{}\"'=:,.ab01\n\\-#&*!|> ", max_size=40))
def test_any_text_is_read_or_refused_in_words(format, text):
    try:
        parse_tasks(text, format=format, name="t")
    except ConfigError as error:
        assert str(error).startswith("t")
