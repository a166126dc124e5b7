"""The claim algebra by tables, and against a matcher that knows only concrete paths."""

import time
from fnmatch import fnmatchcase
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.claim import Claim, ClaimIndex, conflict
from necrocode.errors import ConfigError
from necrocode.patterns import normalised

SPELLINGS = [
    ("src/a.py", "src/a.py"),
    ("./src//a.py", "src/a.py"),
    ("/src/a.py", "src/a.py"),
    ("src/x/../a.py", "src/a.py"),
    ("src/", "src/**"),
    ("src/.", "src/**"),
    ("src/**", "src/**"),
    ("src/**/", "src/**"),
    (".", "**"),
    ("/", "**"),
    ("./", "**"),
    ("**", "**"),
    ("caf\u0065\u0301", "caf\u00e9"),
    ("a b", "a b"),
    ("a\nb", "a\nb"),
]


@pytest.mark.parametrize(("written", "expected"), SPELLINGS)
def test_one_spelling(written, expected):
    assert normalised(written) == expected
    assert normalised(expected) == expected


@pytest.mark.parametrize("written", ["", "..", "../a", "a/../..", "a/../../b", "a\0b", "a/.."])
def test_what_names_nothing(written):
    with pytest.raises(ConfigError):
        normalised(written)


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ("file:src/a.py", Claim("file:R", "src/a.py"), "file:src/a.py"),
        ("file:src/", Claim("file:R", "src/**"), "file:src/**"),
        ("file:/etc/hosts", Claim("file:/", "etc/hosts"), "file:etc/hosts"),
        ("shared:file:a", Claim("file:R", "a", True), "shared:file:a"),
        ("branch:fix", Claim("branch:R", "fix/**"), "branch:fix"),
        ("branch:refs/heads/fix/1", Claim("branch:R", "fix/1/**"), "branch:fix/1"),
        ("shared:branch:fix", Claim("branch:R", "fix/**", True), "shared:branch:fix"),
        ("shared:workspace:/w/one", Claim("workspace", "w/one/**", True), "shared:workspace:/w/one"),
        ("workspace:/w/one", Claim("workspace", "w/one/**"), "workspace:/w/one"),
        ("workspace:/w/[1]*", Claim("workspace", "w/[[]1][*]/**"), "workspace:/w/[1]*"),
        ("port:8080", Claim("port", "8080"), "port:8080"),
        ("shared:gpu:0", Claim("gpu", "0", True), "shared:gpu:0"),
        ("db:host:5432", Claim("db", "host:5432"), "db:host:5432"),
    ],
)
def test_text(text, expected, said):
    claim = Claim.parse(text, "R")
    assert claim == expected and str(claim) == said


@pytest.mark.parametrize("text", ["", "gpu", ":a", "gpu:", "shared:", "shared:gpu", "file:../a", "port:..", "file:\0"])
def test_what_is_no_claim(text):
    with pytest.raises(ConfigError):
        Claim.parse(text)


def test_only_what_cannot_check_a_token_is_sticky():
    texts = ["file:a", "branch:a", "workspace:/a", "port:1", "gpu:0"]
    assert [Claim.parse(text).sticky for text in texts] == [False, True, True, False, False]


MEET = [
    ("file:a", "file:a"),
    ("file:a/", "file:a"),
    ("file:a/", "file:a/b/c"),
    ("file:a", "file:a/b"),
    ("file:a", "file:a/b/c"),
    ("file:a", "file:a/*.py"),
    ("file:a", "file:a/**/x"),
    ("file:a/b", "file:a/b/c*/d"),
    ("file:a[*]", "file:a[*]/x"),
    ("shared:file:a", "file:a/b"),
    ("file:a/b/", "file:a/"),
    ("file:.", "file:x/y"),
    ("file:a/*.py", "file:a/b.py"),
    ("file:a/*", "file:*/b"),
    ("file:**/x", "file:a/**"),
    ("file:**/x", "file:x"),
    ("file:a?c", "file:ab*"),
    ("file:[ab]", "file:a"),
    ("file:a[*]", "file:a*"),
    ("file:a[*]", "file:a[*]"),
    ("file:[id].tsx", "file:[[]id].tsx"),
    ("file:[...all]/x", "file:[[]...all]/x"),
    ("file:[a].tsx", "file:[[]a].tsx"),
    ("file:[a].tsx", "file:a.tsx"),
    ("branch:fix", "branch:fix"),
    ("branch:fix", "branch:fix/1"),
    ("workspace:/w", "workspace:/w/x"),
    ("workspace:/w/[1]", "workspace:/w/[1]/x"),
    ("port:1", "port:1"),
    ("shared:file:a", "file:a"),
    ("shared:branch:fix", "branch:fix/1"),
    ("shared:workspace:/w", "workspace:/w/x"),
    ("file:.git/config", "file:.*/config"),
]
APART = [
    ("file:a", "file:b"),
    ("file:a/", "file:ab"),
    ("file:a", "file:ab/c"),
    ("file:a/b", "file:a/c*/d"),
    ("file:a", "file:*/b"),
    ("file:a?", "file:ab/c"),
    ("shared:file:a", "shared:file:a/b"),
    ("gpu:a", "gpu:a/b"),
    ("gpu:a", "gpu:a/*"),
    ("file:a/*.py", "file:a/b.txt"),
    ("file:a/*", "file:a/b/c"),
    ("file:a/*.py", "file:b/*.py"),
    ("file:a[*]", "file:ab"),
    ("file:[id].tsx", "file:[[]slug].tsx"),
    ("file:[id].tsx", "file:id.tsx"),
    ("file:A", "file:a"),
    ("shared:file:a", "shared:file:a/"),
    ("shared:branch:fix", "shared:branch:fix"),
    ("shared:workspace:/w", "shared:workspace:/w/x"),
    ("file:a", "branch:a"),
    ("branch:fix", "branch:fix-1"),
    ("workspace:/w/1", "workspace:/w/11"),
    ("workspace:/w/*", "workspace:/w/x"),
    ("port:1", "port:11"),
]


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(*p, True) for p in MEET] + [(*p, False) for p in APART])
def test_conflict(ours, theirs, expected):
    a, b = Claim.parse(ours, "R"), Claim.parse(theirs, "R")
    assert conflict(a, b) is conflict(b, a) is expected
    for one, other in ((a, b), (b, a)):
        index = ClaimIndex()
        index.add("them", [one])
        assert bool(list(index.conflicts("us", other))) is expected
        assert not list(index.conflicts("them", other))


def test_repositories_are_apart():
    assert not conflict(Claim.file("a", "R"), Claim.file("a", "S"))
    assert not conflict(Claim.branch("a", "R"), Claim.branch("a", "S"))
    assert conflict(Claim.file("/a", "R"), Claim.file("/a", "S"))


# Against concrete paths. Patterns have at most three segments of at most two symbols, so two that meet do so in a
# path of at most four segments of at most two letters.

NAMES = ["".join(name) for length in (1, 2) for name in product("ab", repeat=length)]
PATHS = [path for depth in range(1, 5) for path in product(NAMES, repeat=depth)]


def matches(path, segments):
    if not segments:
        return not path
    if segments[0] == "**":
        return matches(path, segments[1:]) or (bool(path) and matches(path[1:], segments))
    return bool(path) and fnmatchcase(path[0], segments[0]) and matches(path[1:], segments[1:])


PLAIN = st.text("ab*?", min_size=1, max_size=2).filter(lambda segment: segment != "**")
CLASSES = st.sampled_from(["[ab]", "[a]", "[!a]", "[ab]*", "a[a-b]", "[*]", "[?]b"])
SEGMENT = st.one_of(PLAIN, PLAIN, st.just("**"))
EXACT = st.lists(st.one_of(SEGMENT, st.sampled_from(["a", "ab"])), min_size=1, max_size=3)
ANY = st.lists(st.one_of(SEGMENT, CLASSES), min_size=1, max_size=3)


@cache
def named(segments):
    return frozenset(path for path in PATHS if matches(path, segments))


def meet(ours, theirs):
    return bool(named(tuple(ours)) & named(tuple(theirs)))


def leads_to(ours, theirs):
    """Whether ours is one path, which would have to be a directory for all that theirs can name."""
    depth = len(ours)
    literal = named(tuple(ours)) == {tuple(ours)}
    return literal and all(path[:depth] == tuple(ours) for path in named(tuple(theirs)))


@settings(max_examples=300, deadline=None)
@given(EXACT, EXACT)
def test_patterns_without_classes_conflict_exactly_when_a_path_matches_both_or_one_is_above(ours, theirs):
    expected = meet(ours, theirs) or leads_to(ours, theirs) or leads_to(theirs, ours)
    assert conflict(Claim.file("/".join(ours)), Claim.file("/".join(theirs))) is expected
    assert conflict(Claim("gpu", "/".join(ours)), Claim("gpu", "/".join(theirs))) is meet(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(ANY, ANY)
def test_patterns_with_classes_never_miss_a_path(ours, theirs):
    if meet(ours, theirs):
        assert conflict(Claim.file("/".join(ours)), Claim.file("/".join(theirs)))


CLAIM = st.builds(
    Claim,
    st.sampled_from(["file:", "branch:", "gpu"]),
    st.lists(st.one_of(SEGMENT, CLASSES, st.sampled_from(["a", "b", "c", "ab*", "ab"])), min_size=1, max_size=4).map(
        "/".join
    ),
    st.booleans(),
)
CHANGES = st.lists(
    st.tuples(st.sampled_from("xyz"), st.lists(CLAIM, min_size=1, max_size=3), st.booleans()), max_size=12
)


@settings(deadline=None)
@given(CHANGES, st.lists(CLAIM, min_size=1, max_size=4))
def test_index_equals_asking_everybody(changes, asked):
    index, held = ClaimIndex(), []
    for owner, claims, leaves in changes:
        index.add(owner, claims)
        held += [(owner, claim) for claim in claims]
        if leaves and held:
            gone = held.pop(len(held) // 2)
            index.remove(gone[0], [gone[1]])
    for wanted in asked:
        for who in "xq":
            expected = {(owner, claim) for owner, claim in held if owner != who and conflict(wanted, claim)}
            assert set(index.conflicts(who, wanted)) == expected
    blockers = index.blockers("q", asked)
    assert set(blockers) == {owner for owner, claim in held if any(conflict(wanted, claim) for wanted in asked)}
    assert all(conflict(*pair) for pair in blockers.values())
    for owner, claim in held:
        index.remove(owner, [claim])
    assert not any(list(index.conflicts("q", wanted)) for wanted in asked)


def test_a_claim_held_twice_is_held_until_it_was_given_back_twice():
    index, claim = ClaimIndex(), Claim.file("a")
    index.add("x", [claim, claim])
    index.remove("x", [claim])
    assert list(index.conflicts("y", claim)) == [("x", claim)]
    index.remove("x", [claim])
    assert not list(index.conflicts("y", claim))


BESIDE = {
    "elsewhere": (
        lambda n: [Claim.file(f"d{n % 97}/s{n}/f.py"), Claim.file(f"d{n % 97}/t{n}/")],
        lambda n: Claim.file(f"d{n % 97}/s{n}/g.py"),
    ),
    "at one path that all share": (
        lambda n: [Claim.file("a", shared=True), Claim.file("src/", shared=True)],
        lambda n: Claim.file("src/a.py" if n % 2 else "a", shared=True),
    ),
    "below a directory that all share": (
        lambda n: [Claim.file(f"src/f{n}", shared=True)],
        lambda n: Claim.file("src/", shared=True),
    ),
    "with patterns that begin otherwise": (
        lambda n: [Claim.file(f"src/t{n}_*.py")],
        lambda n: Claim.file(f"src/u{n}_a.py"),
    ),
}


@pytest.mark.parametrize("where", BESIDE)
def test_an_answer_does_not_cost_more_with_more_holders(where):
    held, asked = BESIDE[where]

    def seconds(count):
        index = ClaimIndex()
        for n in range(count):
            index.add(f"r{n}", held(n))
        wanted = [asked(n) for n in range(300)]
        best = 9.0
        for _ in range(5):
            begin = time.process_time()
            assert not any(list(index.conflicts("us", claim)) for claim in wanted)
            best = min(best, time.process_time() - begin)
        return best

    assert seconds(8000) < 8 * seconds(400) + 0.01


def test_patterns_side_by_side_are_told_apart_by_how_they_begin():
    """Beside a thousand others only those are compared that may fit, and that quickly also the first time."""
    index = ClaimIndex()
    for n in range(2000):
        index.add(f"r{n}", [Claim.file(f"src/side{n}_*.py")])
    begin = time.process_time()
    for n in range(20):
        assert not list(index.conflicts("us", Claim.file(f"src/new{n}_*.py")))
        assert [owner for owner, _ in index.conflicts("us", Claim.file(f"src/side{n}_*.txt"))] == []
        assert [owner for owner, _ in index.conflicts("us", Claim.file(f"src/side{n}_a.py"))] == [f"r{n}"]
    assert time.process_time() - begin < 0.2
