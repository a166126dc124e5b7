"""What a machine can hold of the house's rules: floors, imports, sizes, funnels, names, and what must be documented."""

import ast
import importlib
import inspect
import pickle
import pkgutil
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import necrocode
from necrocode.errors import NecrocodeError
from necrocode.life import MOVES
from necrocode.outcome import Status

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "necrocode"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
FLOORS = CONTRACTS["contracts"][0]["layers"]
HEAVY = ("asyncio", "click", "filelock", "psutil", "pydantic", "rich")


@cache
def trees():
    """Every file of the house by its place in it, as a syntax tree."""
    return {str(file.relative_to(HOUSE)): ast.parse(file.read_text()) for file in sorted(HOUSE.rglob("*.py"))}


def room(place):
    """The top room a file belongs to: `ledger` for ledger/gate.py."""
    return Path(place).parts[0].removesuffix(".py")


def rooms_of(floors):
    return [name for floor in floors for name in re.findall(r"\w+", floor)]


def pure_rooms():
    below_the_ground = FLOORS[FLOORS.index("(clock)") + 1 :]
    return [name for name in rooms_of(below_the_ground) if (HOUSE / f"{name}.py").exists()]


# Floors


def lint(folder):
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=100
    )


def test_every_room_stands_on_its_floor():
    ran = lint(ROOT)
    assert ran.returncode == 0, ran.stdout


BREACHES = {
    "a room without a floor": ("new_room.py", '"""New."""\n'),
    "a rule that imports the ground": ("retry.py", "import necrocode.statedir\n"),
    "a word that looks at the clock": ("claim.py", "import time\n"),
    "a word that starts threads in a function": ("event.py", "def start():\n    import threading\n"),
    "a face that imports another": ("benchmark.py", '"""Face."""\nimport necrocode.agent_runner\n'),
    "a ground room that imports an engine": ("git/calls.py", "import necrocode.heartbeat\n"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_the_contract_notices(breach, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(HOUSE, tmp_path / "necrocode", ignore=shutil.ignore_patterns("__pycache__"))
    place, line = BREACHES[breach]
    with (tmp_path / "necrocode" / place).open("a") as file:
        file.write(line)
    ran = lint(tmp_path)
    assert ran.returncode == 1 and "BROKEN" in ran.stdout, ran.stdout + ran.stderr


def test_all_words_and_rules_are_held_to_be_pure():
    assert sorted(f"necrocode.{name}" for name in pure_rooms()) == CONTRACTS["contracts"][1]["source_modules"]


def test_no_room_has_two_floors():
    rooms = rooms_of(FLOORS)
    assert len(rooms) == len(set(rooms))


# Importing does nothing

WATCH = """
import os, sys, threading
before = set(sys.modules)
import importlib
for name in {names!r}:
    importlib.import_module(name)
found = [name for name in {unwanted!r} if name in sys.modules and name not in before]
assert not found, found
assert threading.active_count() == 1
assert not os.listdir(os.environ["HOME"]) and not os.listdir(".")
"""


def run_alone(code, folder):
    home, here = folder / "home", folder / "here"
    home.mkdir()
    here.mkdir()
    environment = {"HOME": str(home), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=here, env=environment, capture_output=True, text=True, timeout=60
    )


SLOW_ON_PURPOSE = {"taskmodels", "taskbuild"}
"""The task file's models; whoever reads no task file does not import them."""


@pytest.mark.parametrize(
    ("names", "unwanted"),
    [
        (["necrocode"], [*HEAVY, "subprocess", "dataclasses", "inspect"]),
        (
            [f"necrocode.{name}" for name in pure_rooms() if name not in SLOW_ON_PURPOSE],
            [*HEAVY, "subprocess", "inspect"],
        ),
        (["necrocode.ledger", "necrocode.ledger.files", "necrocode.heartbeat"], HEAVY),
        (["necrocode.cli"], [name for name in HEAVY if name != "click"]),
    ],
    ids=["package", "words and rules", "ledger", "command line"],
)
def test_importing_starts_writes_and_prints_nothing_and_stays_light(names, unwanted, tmp_path):
    there = [name for name in names if importlib.util.find_spec(name)]
    ran = run_alone(WATCH.format(names=there, unwanted=list(unwanted)), tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_importing_everything_starts_writes_and_prints_nothing(tmp_path):
    names = [name for name in every_module() if name != "necrocode.__main__"]
    ran = run_alone(WATCH.format(names=names, unwanted=[]), tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def every_module():
    return ["necrocode", *(info.name for info in pkgutil.walk_packages(necrocode.__path__, "necrocode."))]


# Sizes

LONGEST_ROOM, LONGEST_FUNCTION = 330, 60


@pytest.mark.parametrize("place", trees())
def test_rooms_are_small_and_say_what_they_are(place):
    assert len((HOUSE / place).read_text().splitlines()) <= LONGEST_ROOM
    assert ast.get_docstring(trees()[place]) or Path(place).name == "__main__.py"


def functions():
    for place, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{place}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_functions_are_small():
    lengths = dict(functions())
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
    assert statistics.median(lengths.values()) <= 10
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 32


# Funnels

ALLOWED = {
    "subprocess": {"process", "git", "nursery"},  # nursery starts our own runners, which are to survive us
    "filelock": {"ledger", "git", "statedir"},
    "psutil": {"process"},
    "pydantic": {"taskmodels", "settings", "agent_runner", "parallel", "benchmark", "commands"},
}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("funnel", ALLOWED)
def test_one_funnel_for_each_outside_thing(funnel):
    users = {place for place, tree in trees().items() if funnel in imports(tree)}
    assert {place for place in users if room(place) not in ALLOWED[funnel]} == set()


def test_no_shell_and_no_pickle_from_files():
    for place, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                shell = [word.value for word in node.keywords if word.arg == "shell"]
                assert not any(not isinstance(value, ast.Constant) or value.value for value in shell), place
                called = ast.unparse(node.func)
                assert called not in ("os.system", "os.popen", "pickle.load", "pickle.loads", "eval", "exec"), place


# Broad excepts: those that go on afterwards. One that cleans up and raises again hides nothing.

BROAD = {
    ("cli.py", "main"): "the edge: a person gets one sentence, a developer the traceback",
    ("agent_runner/one_run.py", "carrying"): "it is raised again by the thread that waits",
    ("attempt.py", "_called"): "what the caller's own function raises is how the work ended",
    ("futures/workload.py", "attempt"): "what the caller's own function raises is the task's result",
    ("aio/threads.py", "_carry"): "what a caller's function raises in its thread is raised again where it is awaited",
}
MOST_BROAD = 5  # three of them only carry the exception over to whoever waits for it


def broad_excepts():
    for place, tree in trees().items():
        for function in ast.walk(tree):
            is_function = isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and any(map(goes_on, own_nodes(function))):
                yield place, function.name


def own_nodes(function):
    """What is in a function but not in one that is defined inside it."""
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)


def goes_on(node):
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        return any(ast.unparse(kind) in ("Exception", "BaseException") for kind in node.args)
    if not isinstance(node, ast.ExceptHandler):
        return False
    kinds = {"BaseException"} if node.type is None else set(re.findall(r"\w+", ast.unparse(node.type)))
    last = node.body[-1]
    return bool(kinds & {"Exception", "BaseException"}) and not (isinstance(last, ast.Raise) and last.exc is None)


def test_broad_excepts_are_few_and_named():
    assert set(broad_excepts()) <= set(BROAD)
    assert len(BROAD) <= MOST_BROAD


# Errors


def errors():
    for name in every_module():
        if name != "necrocode.__main__":
            importlib.import_module(name)
    todo, found = [NecrocodeError], []
    while todo:
        found.append(todo.pop())
        todo += [kind for kind in found[-1].__subclasses__() if kind.__module__.startswith("necrocode")]
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in found}


FACTS = [
    ("Mapping", {"a": 1}), ("Status", Status.DONE), ("Sequence", ("a", "b")), ("Iterable", ("a", "b")),
    ("tuple", ("a",)), ("float", 1.5), ("int", 3), ("bool", True), ("str", "x"),
]  # fmt: skip


def sample(kind):
    given, named = [], {}
    for parameter in inspect.signature(kind).parameters.values():
        value = next((fact for word, fact in FACTS if word in str(parameter.annotation)), {"a": 1})
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = value
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            given.append(value)
    return kind(*given, **named)


def test_every_error_pickles():
    for name, kind in errors().items():
        error = sample(kind)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error)), name


def test_no_error_hides_a_builtin():
    builtins = {name for name, value in vars(__import__("builtins")).items() if isinstance(value, type)}
    for place, tree in trees().items():
        named = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        assert not named & builtins, place


# Names

NEVER = {"utils", "util", "helpers", "helper", "common", "base", "types", "constants", "misc"}
NOT_IN_CORE = re.compile(r"manager|handler|service|registry")


def test_names():
    for place in trees():
        words = {part.removesuffix(".py") for part in Path(place).parts}
        assert not words & NEVER, place
        assert len(Path(place).parts) > 1 or not NOT_IN_CORE.search(place), place


# Documentation


def test_every_status_has_its_row():
    rows = [line.split("|") for line in (ROOT / "docs/states.md").read_text().splitlines() if line.startswith("| `")]
    told = {row[1].strip(" `"): row for row in rows}
    assert set(told) == {str(status) for status in Status}
    for status in Status:
        _, _, meaning, final, moves, _ = told[str(status)]
        assert meaning.strip() and (final.strip() == "yes") is status.is_final
        assert set(re.findall(r"\w+", moves)) == {str(to) for to in MOVES[status]}


def verbs():
    if importlib.util.find_spec("necrocode.cli") is None:
        return []
    return sorted(importlib.import_module("necrocode.cli").VERBS)


def documents():
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(file.read_text() for file in files if file.exists())


@pytest.mark.parametrize("verb", verbs())
def test_every_command_has_help_and_is_documented(verb):
    import click

    group = next(
        value for value in vars(importlib.import_module("necrocode.cli")).values() if isinstance(value, click.Group)
    )
    command = group.get_command(click.Context(group), verb)
    assert command is not None and (command.help or "").strip()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert (parameter.help or "").strip(), parameter.name
    assert re.search(rf"necrocode {verb}\b", documents()), f"no document says `necrocode {verb}`"


# Types and style


@pytest.mark.slow
def test_types():
    """S2-59: the whole house type-checks."""
    ran = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_style():
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
