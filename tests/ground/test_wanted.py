"""Claims as people write them, resolved against the directory and the repository they were written in."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from byhand import sh

from necrocode.claim import Claim, conflict
from necrocode.errors import ConfigError
from necrocode.wanted import wanted


def meet(ours: tuple[Claim, ...], theirs: tuple[Claim, ...]) -> bool:
    return any(conflict(*pair) for pair in product(ours, theirs))


@pytest.mark.parametrize("name", ["file:src", "branch:fix", "workspace:tree", "gpu:0"])
@pytest.mark.parametrize("inside", [True, False])
def test_whatever_is_shared_is_shared_with_those_who_share_it(
    repository: Path, tmp_path: Path, name: str, inside: bool
) -> None:
    where = repository if inside else tmp_path
    alone, shared = wanted([name], where=where), wanted([f"shared:{name}"], where=where)
    assert meet(alone, alone) and meet(alone, shared) and not meet(shared, shared)


@pytest.mark.parametrize("name", ["src/a.py", "src", "*/a.py", "new/"])
def test_a_path_into_a_repository_is_the_repositorys_also_from_outside(
    repository: Path, tmp_path: Path, name: str
) -> None:
    """Not only for those who stand in it: the same file has one name."""
    sh("git", "init", "-q", "other", cwd=tmp_path)
    inside = wanted([], [name], where=repository)
    for where, spelling in ((tmp_path, f"repo/{name}"), (tmp_path, f"{repository}/{name}"),
                            (tmp_path / "other", f"{repository}/{name}")):  # fmt: skip
        assert wanted([], [spelling], where=where) == inside


def test_outside_of_any_repository_a_file_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "a*b").touch()
    top = str(tmp_path).removeprefix("/")
    for name, path in {"a": "a", "d": "d/**", "new/": "new/**", "*.py": "*.py", "a*b": "a[*]b", "d/../a": "a"}.items():
        assert wanted([], [name], where=tmp_path) == (Claim("file:/", f"{top}/{path}"),), name


def test_a_repository_that_git_does_not_open_is_not_asked_for_its_files(repository: Path, tmp_path: Path) -> None:
    (repository / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(ConfigError, match="not in a git repository"):
        wanted([], ["src/a.py"], where=repository)
    (claim,) = wanted([], [f"{repository}/src/a.py"], where=tmp_path)
    assert claim == Claim.file(f"{repository}/src/a.py", "/")


def test_a_relative_path_does_not_leave_the_repository(repository: Path) -> None:
    with pytest.raises(ConfigError, match="outside the repository"):
        wanted([], ["../x"], where=repository)
    assert wanted([], [str(repository.parent / "x")], where=repository)[0].kind == "file:/"


def test_a_link_meets_the_patterns_that_fit_its_name(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for where in (repository, tmp_path):
        (where / "link").symlink_to("src")
        link, pattern, target = (wanted([], [name], where=where) for name in ("link", "l*", "src/a.py"))
        assert meet(link, pattern) and meet(link, target) and not meet(pattern, target)
