"""Who may stand, who waits, and who is served next: by tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from necrocode.admission import Obstacle, Standing, View, Waiter, Wish, cycle, grantable, holder_of, known, obstacle
from necrocode.claim import Claim


def claims(text: str) -> tuple[Claim, ...]:
    """`a b` are files, `~a` is shared, `@a` a branch."""
    kinds: dict[str, Callable[[str], Claim]] = {
        "~": lambda one: Claim.file(one[1:], shared=True),
        "@": lambda one: Claim.branch(one[1:]),
    }
    return tuple(kinds.get(one[0], Claim.file)(one) for one in text.split())


def standing(name: str, held: str = "", token: int = 1, **more: Any) -> Standing:
    return Standing(name, claims(held), token, **more)


def waiter(name: str, ticket: int, wanted: str = "", priority: int = 0, spec: str = "", **more: Any) -> Waiter:
    return Waiter(name, ticket, priority, read=known(Wish(claims(wanted), spec)), **more)


def view(*parties: Standing | Waiter, **terms: Any) -> View:
    made = View(**terms)
    for one in parties:
        if isinstance(one, Standing):
            made.stand(one)
        else:
            made.waiting[one.key] = one
    return made


def found(seen: Obstacle | None) -> tuple[str, list[str]] | None:
    return (seen.reason, sorted(seen.blockers)) if seen else None


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        ("", "a", None),
        ("a", "b", None),
        ("a", "a", ("file", ["h"])),
        ("~a", "~a", None),
        ("~a", "a", ("file", ["h"])),
        ("a", "~a", ("file", ["h"])),
        ("src/**", "src/x/y.py", ("file", ["h"])),
        ("src/*.py", "src/x.txt", None),
        ("@fix", "@fix/one", ("branch", ["h"])),
        ("@fix", "fix", None),
        ("a", "z y a", ("file", ["h"])),
    ],
)
def test_claims(held: str, wanted: str, expected: object) -> None:
    assert found(obstacle(view(standing("h", held)), waiter("w", 9, wanted))) == expected


def test_the_own_claims_are_in_nobodys_way() -> None:
    assert obstacle(view(standing("w", "~a b")), waiter("w", 9, "a b", adding=True)) is None


@pytest.mark.parametrize(
    ("live", "own", "host", "expected"),
    [
        (0, None, None, None),
        (9, None, None, None),
        (2, 3, None, None),
        (3, 3, None, (3, 3)),
        (2, None, 2, (2, 2)),
        (1, 3, 2, None),
        (2, 3, 2, (2, 2)),
        (1, 1, 9, (1, 1)),
        (5, 2, 9, (5, 2)),
        (0, None, 0, (0, 0)),
    ],
)
def test_limits(live: int, own: int | None, host: int | None, expected: tuple[int, int] | None) -> None:
    seen = obstacle(view(*(standing(f"h{at}") for at in range(live)), limit=host), waiter("w", 9, limit=own))
    assert (seen and (seen.live, seen.limit)) == expected
    assert seen is None or (seen.reason == "limit" and len(seen.blockers) == live)


def test_who_counts() -> None:
    """Neither the fenced nor what needs no slot counts; the unreadable does."""
    seen = view(
        standing("fenced", fenced=True), standing("none", slot=False), standing("broken", unreadable=True), limit=2
    )
    assert seen.live == 1
    assert obstacle(seen, waiter("w", 9)) is None
    assert found(obstacle(seen, waiter("w", 9, limit=1))) == ("limit", ["broken"])
    assert obstacle(view(standing("h"), limit=1), waiter("w", 9, needs_slot=False)) is None
    assert obstacle(view(standing("h"), limit=1), waiter("h", 9, "a", adding=True)) is None


@pytest.mark.parametrize(
    ("quotas", "spec", "expected"),
    [
        ({"spec:x": 1}, "x", ("quota", ["h"])),
        ({"spec:x": 2}, "x", None),
        ({"spec:x": 1}, "y", None),
        ({"spec:y": 1}, "y", None),
        ({"user:u": 2}, "y", ("quota", ["g", "h"])),
        ({"user:u": 3, "spec:x": 1}, "x", ("quota", ["h"])),
    ],
)
def test_quotas(quotas: dict[str, int], spec: str, expected: object) -> None:
    seen = view(
        standing("h", spec_name="x", user="u"), standing("g", spec_name="z", user="u"),
        standing("fenced", spec_name="x", user="u", fenced=True), quotas=quotas,
    )  # fmt: skip
    asked = Waiter("w", 9, read=known(Wish((), spec, "u")))
    assert found(obstacle(seen, asked)) == expected


def test_the_fenced_keep_what_is_sticky() -> None:
    seen = view(standing("f", "a @fix", fenced=True))
    assert obstacle(seen, waiter("w", 9, "a")) is None
    assert found(obstacle(seen, waiter("w", 9, "@fix"))) == ("branch", ["f"])


def test_the_unreadable_may_hold_anything() -> None:
    seen = view(standing("broken", unreadable=True))
    assert found(obstacle(seen, waiter("w", 9, "a"))) == ("unreadable", ["broken"])
    assert obstacle(seen, waiter("w", 9)) is None
    assert obstacle(seen, waiter("broken", 9, "a", adding=True)) is None


def test_those_ahead_who_want_the_same() -> None:
    seen = view(waiter("first", 1, "a b"), waiter("later", 30, "c"))
    assert found(obstacle(seen, waiter("w", 9, "b"))) == ("queue", ["first"])
    assert obstacle(seen, waiter("w", 9, "c")) is None
    assert obstacle(seen, waiter("w", 0, "b")) is None
    assert obstacle(seen, waiter("w", 9, "b", priority=1)) is None
    assert obstacle(seen, waiter("w", 9, "b", adding=True)) is None


def test_leaving_leaves_nothing() -> None:
    seen = view(standing("a", "x ~y @z"), standing("b", unreadable=True), limit=9)
    for name in ("a", "b", "nobody"):
        seen.leave(name)
    assert (seen.live, seen.standing, seen.unreadable) == (0, {}, set())
    assert obstacle(seen, waiter("w", 9, "** @z")) is None


@pytest.mark.parametrize(
    ("parties", "limit", "expected"),
    [
        ([], None, []),
        ([waiter("a", 1), waiter("b", 2)], None, ["a", "b"]),
        ([waiter("a", 1), waiter("b", 2)], 1, ["a"]),
        ([waiter("a", 1), waiter("b", 2, priority=1)], 1, ["b"]),
        ([waiter("a", 1), waiter("h", 2, "x", adding=True), standing("h")], 1, ["h"]),
        # who waits reserves what it wants against those behind, and only that
        ([standing("h", "x"), waiter("a", 1, "x y"), waiter("b", 2, "y"), waiter("c", 3, "z")], 9, ["c"]),
        ([standing("h", "~x"), waiter("a", 1, "x"), waiter("b", 2, "~x")], 9, []),
        ([waiter("a", 1, "x"), waiter("b", 2, "x")], None, ["a"]),
        ([waiter("a", 1, "~x"), waiter("b", 2, "~x")], None, ["a", "b"]),
        # a lower limit of its own holds nobody back who wants other things
        ([standing("h"), waiter("a", 1, "x", limit=1), waiter("b", 2, "y"), waiter("c", 3, "x")], 9, ["b"]),
        # no slot is needed
        ([standing("h"), waiter("a", 1), waiter("b", 2, "y", needs_slot=False)], 1, ["b"]),
        ([standing("h"), waiter("a", 1, "y"), waiter("b", 2, "y", needs_slot=False)], 1, []),
    ],
)
def test_service(parties: list[Any], limit: int | None, expected: list[str]) -> None:
    seen, served = view(*parties, limit=limit), []
    for one in grantable(seen):
        served.append(one.runner_id)
        del seen.waiting[one.key]
        if not one.adding:
            seen.stand(Standing(one.runner_id, one.wish.claims, 99))
    assert served == expected


def test_a_full_house_is_not_asked_what_it_wants() -> None:
    """A hand-over must not cost a read of the whole queue."""
    read: list[str] = []

    def asked(name: str, ticket: int) -> Waiter:
        return Waiter(name, ticket, read=lambda _: (read.append(name), Wish(claims("x")))[1])

    seen = view(standing("h"), *(asked(f"w{at}", at) for at in range(9)), limit=1)
    assert list(grantable(seen)) == [] and read == []
    seen.leave("h")
    first = next(grantable(seen))
    assert (first.runner_id, read) == ("w0", ["w0"])


def chain(*links: str) -> View:
    """`a:x>y` holds x and waits for y."""
    seen = View()
    for ticket, link in enumerate(links):
        name, _, rest = link.partition(":")
        held, _, wanted = rest.partition(">")
        seen.stand(standing(name, held))
        if wanted:
            one = waiter(name, ticket, wanted, adding=True)
            seen.waiting[one.key] = one
    return seen


@pytest.mark.parametrize(
    ("links", "asker", "wanted", "expected"),
    [
        (["a:x", "b:y"], "a", "y", None),
        (["a:x", "b:y>x"], "a", "y", ["a", "b", "a"]),
        (["a:x", "b:y>x"], "a", "z", None),
        (["a:x>y", "b:y>z", "c:z"], "c", "x", ["c", "a", "b", "c"]),
        (["a:x>y", "b:y>z", "c:z"], "b", "q", None),
        (["a:~x>x", "b:~x"], "b", "x", ["b", "a", "b"]),
        # it waits behind another who waits for what it holds
        (["a:x", "b:y>x q", "c:q"], "a", "q", ["a", "b", "a"]),
    ],
)
def test_circles(links: list[str], asker: str, wanted: str, expected: list[str] | None) -> None:
    assert cycle(chain(*links), waiter(asker, 99, wanted, adding=True)) == expected


def test_facts_about_a_blocker() -> None:
    mine, theirs = claims("a b")
    known = holder_of("h", (mine, theirs), standing("h", token=7), None)
    assert (known.state, known.token, known.wanted, known.claim) == ("running", 7, mine, theirs)
    assert holder_of("f", None, standing("f", fenced=True), None).state == "fenced"
    assert holder_of("w", None, None, None).state == "waiting"
