"""A state directory is made whole, refused when it cannot be trusted, and loses nothing that it cannot read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from actors import Puppet, run_clean

from necrocode import mounts as mounts_room
from necrocode.claim import Claim
from necrocode.errors import NecrocodeError, ResourceConflictError, StateUnreadable, StateUnusable
from necrocode.lease import Request
from necrocode.ledger import waiting, watchman
from necrocode.ledger.files import FileLedger
from necrocode.mounts import filesystem
from necrocode.statedir import FOLDERS, StateDir, default_root, mark, put, read, read_json, to_json
from necrocode.testing import check, wait_for

MakePuppet = Callable[..., Puppet]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")


@pytest.mark.parametrize("home", [None, "", "  ", "relative/place", "/somewhere/else", "/with/end/"])
def test_the_default_place_is_where_platformdirs_has_it(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    """Told without importing it: that would take longer than `necrocode status`."""
    import platformdirs

    monkeypatch.delenv("NECROCODE_STATE_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("XDG_STATE_HOME", home)
    assert default_root() == Path(platformdirs.user_state_dir("necrocode", appauthor=False))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestMaking:
    def test_a_fresh_one_explains_itself_and_is_private(self, state_root: Path) -> None:
        state = StateDir(state_root / "new")
        assert mode(state.root) == 0o700
        assert sorted(os.listdir(state.root)) == sorted([*FOLDERS, "README.md", "VERSION"])
        readme = (state.root / "README.md").read_text()
        assert all(f"{folder}/" in readme for folder in FOLDERS) and "Delete by hand" in readme
        ledger = FileLedger(state)
        ledger.register(Request("a"))
        made = [Path(place, name) for place, _, names in os.walk(state.root) for name in names]
        assert {mode(one) for one in made} == {0o600}

    def test_parents_are_made_and_the_home_is_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert StateDir("~/a/b").root == tmp_path / "a/b"
        monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "named"))
        assert StateDir().root == tmp_path / "named"

    def test_many_may_make_it_at_once(self, state_root: Path) -> None:
        gate, found = threading.Barrier(8), []

        def make() -> None:
            gate.wait()
            found.append(StateDir(state_root / "new").version)

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [1] * 8

    def test_a_half_made_one_is_completed_and_deleted_folders_return(self, state_root: Path) -> None:
        (state_root / "runners").mkdir()
        state = StateDir(state_root)
        for folder in ("events", "quarantine", "bells"):
            (state_root / folder).rmdir()
        assert StateDir(state_root).version == state.version
        assert all((state_root / folder).is_dir() for folder in FOLDERS)

    def test_not_to_be_made_is_refused_when_missing(self, state_root: Path) -> None:
        with pytest.raises(StateUnusable, match="No such file"):
            StateDir(state_root / "none", create=False)
        assert not (state_root / "none").exists()


class TestRefusing:
    def refused(self, root: Path, match: str) -> StateUnusable:
        before = sorted(os.listdir(root)) if root.is_dir() else None
        with pytest.raises(StateUnusable, match=match) as refused:
            FileLedger(root)
        assert str(root) in str(refused.value) and refused.value.hint
        assert before == (sorted(os.listdir(root)) if root.is_dir() else None), "something was written all the same"
        return refused.value

    @pytest.mark.parametrize("open_to", [0o777, 0o1777, 0o770, 0o702])
    @pytest.mark.parametrize("made", [False, True])
    def test_others_may_write(self, state_root: Path, open_to: int, made: bool) -> None:
        if made:
            StateDir(state_root)
        state_root.chmod(open_to)
        assert "chmod 700" in self.refused(state_root, "others may write").hint

    @needs_root
    def test_another_owner(self, state_root: Path) -> None:
        os.chown(state_root, 12345, -1)
        self.refused(state_root, "belongs to user 12345")

    @needs_root
    def test_a_mode_that_does_not_let_one_write(self, state_root: Path) -> None:
        root = StateDir(state_root / "state").root
        state_root.chmod(0o755)
        os.chown(root, 12345, -1)
        root.chmod(0o500)
        os.setresuid(12345, 12345, 0)
        try:
            with pytest.raises(StateUnusable, match="cannot be written: Permission denied"):
                StateDir(root)
        finally:
            os.setresuid(0, 0, 0)

    def test_a_newer_version(self, state_root: Path) -> None:
        StateDir(state_root)
        (state_root / "VERSION").write_text("2\n")
        assert "upgrade" in self.refused(state_root, "newer necrocode wrote it").hint

    @pytest.mark.parametrize("text", [b"", b"one\n", b"\xb2\n", b"\0\xff", b"1 " * 400_000, "²".encode()])
    def test_a_damaged_version(self, state_root: Path, text: bytes) -> None:
        StateDir(state_root)
        (state_root / "VERSION").write_bytes(text)
        self.refused(state_root, "is not a format number")

    def test_a_version_that_is_a_folder(self, state_root: Path) -> None:
        StateDir(state_root)
        (state_root / "VERSION").unlink()
        (state_root / "VERSION").mkdir()
        self.refused(state_root, "Is a directory")

    def test_not_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        self.refused(tmp_path / "file", "not a directory")
        with pytest.raises(StateUnusable, match=r"(File exists|Not a directory)"):
            FileLedger(tmp_path / "file" / "below")

    def test_somebody_elses_files(self, state_root: Path) -> None:
        (state_root / "thesis.tex").touch()
        self.refused(state_root, "holds other files")

    def test_a_symbolic_link_for_a_lock(self, state_root: Path, tmp_path: Path) -> None:
        (tmp_path / "target").touch()
        ledger = FileLedger(state_root)
        (state_root / "lock").symlink_to(tmp_path / "target")
        with pytest.raises(StateUnusable, match=r"lock.*symbolic links"):
            ledger.register(Request("a"))
        assert (tmp_path / "target").read_bytes() == b"" and os.listdir(state_root / "tmp") == []

    def test_a_folder_for_a_lock(self, state_root: Path) -> None:
        ledger = FileLedger(state_root)
        (state_root / "lock").mkdir()
        with pytest.raises(StateUnusable, match="lock"):
            ledger.register(Request("a"))

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_no_flock(self, state_root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def refuse(descriptor: int, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        ledger = FileLedger(state_root)
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", refuse)
            with pytest.raises(StateUnusable, match="no flock") as refused:
                ledger.register(Request("a"))
        assert str(state_root) in str(refused.value) and "local disk" in refused.value.hint
        assert os.listdir(state_root / "tmp") == []
        ledger.register(Request("a"))

    @pytest.mark.parametrize("kind", ["nfs4", "9p", "virtiofs", "cifs", "fuse.sshfs"])
    def test_a_file_system_whose_locks_cannot_be_trusted(
        self, state_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        device = os.stat(state_root).st_dev
        mounts = tmp_path / "mountinfo"
        mounts.write_text(
            "22 1 0:99 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
            f"23 22 {os.major(device)}:{os.minor(device)} / /mnt/s\\040p rw shared:2 - {kind} host:/x rw,vers=4\n"
        )
        monkeypatch.setattr(mounts_room, "_MOUNTS", str(mounts))
        assert filesystem(state_root) == kind
        self.refused(state_root, f"is on {kind}")
        monkeypatch.setenv("NECROCODE_UNSAFE_FILESYSTEM", "1")
        StateDir(state_root)

    def test_no_mountinfo_proves_nothing(self, state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mounts_room, "_MOUNTS", "/nonexistent")
        assert filesystem(state_root) == ""
        StateDir(state_root)

    def test_out_of_descriptors(self, state_root: Path) -> None:
        assert "Too many open files" in run_clean(_without_descriptors, str(state_root))


def _without_descriptors(root: str) -> str:
    import resource

    ledger, text = FileLedger(root), ""
    ledger.release(ledger.register(Request("warm")))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for left in range(5):
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        taken = _take_all()
        for descriptor in taken[:left]:
            os.close(descriptor)
        try:
            ledger.release(ledger.register(Request("a")))
        except StateUnusable as error:
            text = f"{error} {error.hint}"
        for descriptor in taken[left:]:
            os.close(descriptor)
        ledger.release(ledger.register(Request("a")))
        assert os.listdir(f"{root}/tmp") == [] and check(root)
    return text


def _take_all() -> list[int]:
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        return taken


@needs_root
class TestGroups:
    def test_a_group_may_share_one(self, state_root: Path) -> None:
        """One user holds, another waits, is handed the slot, and outlives the first."""
        os.chmod(state_root, 0o755)
        assert run_clean(_two_users, str(state_root / "shared")) == ["granted", "served", "taken from the dead"]


def _two_users(root: str) -> list[str]:
    import ctypes  # noqa: F401 - the other users may not be able to read where it lies
    import signal
    import time
    import traceback

    waiting._TICK = watchman._ROUND = 60.0  # nobody is served but by the bell
    group, told = 4321, []
    os.umask(0o022)
    state = StateDir(root, group=True)
    for place in (root, *(f"{root}/{name}" for name in (*FOLDERS, "VERSION", "README.md"))):
        os.chown(place, -1, group)
    assert mode(Path(root)) == 0o2770 and state.shared_by_group

    def become(user: int, play: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(ours)
                os.setgroups([])
                os.setresgid(group, group, group)
                os.setresuid(user, user, user)
                play()
                code = 0
            except BaseException:  # noqa: BLE001 - told to the parent
                os.write(theirs, traceback.format_exc().encode())
            finally:
                os._exit(code)
        return child

    ours, theirs = os.pipe()

    def hold() -> None:
        ledger = FileLedger(root)
        lease = ledger.register(Request("first", limit=1))
        os.write(theirs, b"granted\n")
        while not ledger.has_waiters():
            time.sleep(0.001)
        ledger.release(lease)
        ledger.register(Request("second", (Claim.workspace("/w"),)))
        os.write(theirs, b"again\n")
        time.sleep(60)

    def wait() -> None:
        ledger = FileLedger(root)
        ledger.release(ledger.register(Request("other", limit=1), wait=True, timeout=20))
        os.write(theirs, b"served\n")

    holder = become(2001, hold)
    assert (said := os.read(ours, 999)) == b"granted\n", said
    told.append("granted")
    waiter = become(2002, wait)
    assert os.waitpid(waiter, 0)[1] == 0, os.read(ours, 999)
    told += [line for line in os.read(ours, 99).decode().split() if line == "served"]
    wait_for(lambda: FileLedger(root).snapshot().live == 1)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    taker = become(2002, lambda: FileLedger(root).register(Request("taker", (Claim.workspace("/w"),))) and None)
    assert os.waitpid(taker, 0)[1] == 0, os.read(ours, 999)
    return [*told, "taken from the dead"]


class TestWriting:
    def test_writes_whole_or_not_at_all(self, state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = StateDir(state_root)
        path = state.root / "config.json"
        state.write(path, b"old")

        def short(descriptor: int, data: memoryview) -> int:
            if len(data) > 3:
                return real(descriptor, data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

        real = os.write
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(StateUnusable, match="No space left") as refused:
            state.write(path, b"new and longer")
        monkeypatch.undo()
        assert "config.json" in refused.value.path and "free some space" in refused.value.hint
        assert path.read_bytes() == b"old" and os.listdir(state.tmp) == []

    def test_short_writes_are_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
        put(tmp_path / "x", b"0123456789" * 10)
        assert (tmp_path / "x").read_bytes() == b"0123456789" * 10

    def test_durable_ones_are_synced_with_their_name(self, state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state, synced = StateDir(state_root), []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
        state.write(state.root / "result.json", b"x", durable=True)
        assert [Path(one).parent for one in synced] == [state.tmp, state.root.parent]

    def test_json_is_for_people_and_survives_any_text(self, tmp_path: Path) -> None:
        value = {
            "text": "zwölf\n\"'", "bytes": "caf\udce9.py", "list": [["file", "a", "x"], ["file", "b", "x"]],
            "empty": [], "none": None, "deep": {"a": [1, {"b": 2.5}], "c": True}, "nothing": {},
        }  # fmt: skip
        (tmp_path / "x.json").write_bytes(to_json(value))
        assert read_json(tmp_path / "x.json") == value
        lines = to_json(value).split(b"\n")
        assert lines[1].startswith(b'  "text": ') and b'    ["file", "a", "x"],' in lines
        assert json.loads(to_json([1, 2])) == [1, 2]

    def test_reading_is_bounded(self, tmp_path: Path) -> None:
        (tmp_path / "big").write_bytes(b"x" * 100)
        with pytest.raises(ValueError, match="larger"):
            read(tmp_path / "big", most=99)
        os.mkfifo(tmp_path / "pipe")
        assert read(tmp_path / "pipe") == b""
        with pytest.raises(StateUnreadable):
            read_json(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            read_json(tmp_path / "none")

    def test_quarantine_keeps_the_evidence(self, state_root: Path) -> None:
        state = StateDir(state_root)
        state.quarantine_folder.rmdir()
        path = state.runners / "x.1.0.json"
        path.write_bytes(b"broken")
        assert Path(state.quarantine(path)).read_bytes() == b"broken"
        assert state.quarantine(path) == ""


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "binary": lambda whole: bytes(range(256)) * 3,
    "huge": lambda whole: b"[" + b"1," * (9 << 20),
    "deep": lambda whole: b"[" * 200_000,
    "a list": lambda whole: b"[]",
    "newer": lambda whole: whole.replace(b'"schema": 1', b'"schema": 2'),
    "a wrong limit": lambda whole: whole.replace(b'"limit": 5', b'"limit": "many"'),
    "wrong claims": lambda whole: whole.replace(b'"exclusive"]', b'"exclusive", 7]'),
    "no time": lambda whole: whole.replace(b'"start_time": "2', b'"start_time": "x'),
    "an endless time": lambda whole: whole.replace(b'"heartbeat_timeout": 300.0', b'"heartbeat_timeout": -1'),
    "an impossible priority": lambda whole: whole.replace(b'"priority": 0', b'"priority": 1e999'),
    "a wrong pid": lambda whole: whole.replace(b'"pid": ', b'"pid": "x", "was": '),
}


def damage(path: Path, how: str) -> None:
    before = path.read_bytes()
    after = DAMAGE[how](before)
    assert after != before
    path.write_bytes(after)


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


class TestDamage:
    """What somebody or something broke: told, kept aside, and in nobody's way; unless its owner lives."""

    @pytest.mark.parametrize("how", DAMAGE)
    def test_a_dead_holders_record(self, state_root: Path, puppet: MakePuppet, how: str) -> None:
        one = puppet()
        one.do("register", Request("a", (Claim.file("x.py"),), limit=5))
        one.kill()
        damage(only(state_root / "runners"), how)
        ledger = FileLedger(state_root)
        assert ledger.snapshot().unreadable == ("runners/a.4294967297.0.json",)
        lease = ledger.register(Request("b", (Claim.file("x.py"),), limit=1))
        assert only(state_root / "quarantine").name.startswith("a.4294967297.0.json")
        assert _quarantined(ledger) == [str(state_root / "runners" / "a.4294967297.0.json")]
        ledger.release(lease)
        assert check(state_root)

    @pytest.mark.parametrize("how", DAMAGE)
    def test_a_live_holders_record_holds_everything_until_it_is_whole_again(
        self, state_root: Path, puppet: MakePuppet, how: str
    ) -> None:
        one, ledger = puppet(), FileLedger(state_root)
        one.do("register", Request("a", (Claim.file("x.py"),), limit=5))
        one.do("renew", "a")
        damage(only(state_root / "runners"), how)
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(Request("b", (Claim.file("quite/different.py"),)))
        assert refused.value.reason == "unreadable" and [b.runner_id for b in refused.value.blockers] == ["a"]
        ledger.register(Request("slot-only"))
        one.do("renew", "a")
        ledger.register(Request("b", (Claim.file("quite/different.py"),)))
        with pytest.raises(ResourceConflictError) as refused:
            ledger.register(Request("c", (Claim.file("x.py"),)))
        assert refused.value.reason == "file"
        assert only(state_root / "quarantine").name.startswith("a.4294967297.0.json")
        one.do("renew", "a")
        one.do("release", "a")
        ledger.register(Request("c", (Claim.file("x.py"),)))
        assert check(state_root)

    @pytest.mark.parametrize("step", ["claim", "drop", "release", "kill"])
    def test_its_owner_goes_on_all_the_same(self, state_root: Path, puppet: MakePuppet, step: str) -> None:
        one, ledger = puppet(), FileLedger(state_root)
        one.do("register", Request("a", (Claim.file("x.py"), Claim.file("z.py"))))
        damage(only(state_root / "runners"), "empty")
        with pytest.raises(ResourceConflictError):
            ledger.register(Request("b", (Claim.file("y.py"),)))
        if step == "claim":
            one.do("claim", "a", [Claim.file("y.py")])
        elif step == "drop":
            one.do("drop", "a", [Claim.file("z.py")])
        elif step == "release":
            one.do("release", "a")
        else:
            one.kill()
        free = {"claim": "other.py", "drop": "z.py"}.get(step, "x.py")
        ledger.register(Request("b", (Claim.file(free),)))
        assert check(state_root)

    def test_a_record_changed_by_hand_is_put_right(self, state_root: Path, puppet: MakePuppet) -> None:
        one, ledger = puppet(), FileLedger(state_root)
        one.do("register", Request("a", (Claim.file("x.py"),)))
        one.do("renew", "a")
        path = only(state_root / "runners")
        path.write_bytes(path.read_bytes().replace(b"x.py", b"y.py"))
        one.do("renew", "a")
        ledger.register(Request("b", (Claim.file("y.py"),)))
        with pytest.raises(ResourceConflictError):
            ledger.register(Request("c", (Claim.file("x.py"),)))

    def test_a_record_only_touched_is_left_alone(self, state_root: Path, puppet: MakePuppet) -> None:
        one = puppet()
        one.do("register", Request("a", (Claim.file("x.py"),)))
        one.do("renew", "a")
        path = only(state_root / "runners")
        os.utime(path, (1, 1))
        one.do("renew", "a")
        assert only(state_root / "runners") == path

    @pytest.mark.parametrize("how", ["empty", "cut", "binary", "newer"])
    def test_a_live_waiters_entry_is_asked_for_again(self, state_root: Path, puppet: MakePuppet, how: str) -> None:
        ledger, one = FileLedger(state_root), puppet()
        holder = ledger.register(Request("holder", (Claim.file("x.py"),)))
        one.begin("register", Request("w", (Claim.file("x.py"),)), wait=True)
        wait_for(ledger.has_waiters)
        damage(only(state_root / "queue"), how)
        FileLedger(state_root).release(holder)
        assert one.result().runner_id == "w"
        assert only(state_root / "quarantine").name.startswith("r-49-")
        assert check(state_root)

    def test_a_fenced_holders_record_holds_everything_too(self, state_root: Path, puppet: MakePuppet) -> None:
        one, ledger = puppet(), FileLedger(state_root)
        one.do("register", Request("a", (Claim.workspace("/w"),)))
        ledger.fence("a")
        damage(only(state_root / "fenced"), "cut")
        other = FileLedger(state_root)
        with pytest.raises(ResourceConflictError):
            other.register(Request("b", (Claim.workspace("/elsewhere"),)))
        one.kill()
        other.register(Request("b", (Claim.workspace("/w"),)))

    @pytest.mark.parametrize(
        "name",
        [
            "a.json",
            "a.007.0.json",
            "a.7.0.JSON",
            ".7.0.json",
            "a.-7.0.json",
            "a.7.0.json~",
            "a.7_0.0.json",
            "a.٣.0.json",
        ],
    )
    def test_names_that_only_look_right(self, state_root: Path, name: str) -> None:
        ledger = FileLedger(state_root)
        ledger.release(ledger.register(Request("warm")))
        for folder in ("runners", "fenced", "queue"):
            (state_root / folder / name).write_text("{}")
        ledger.register(Request("b", (Claim.file("x.py"),)))
        assert len(list((state_root / "quarantine").iterdir())) == 3 and check(state_root)

    def test_things_that_are_no_files(self, state_root: Path, tmp_path: Path) -> None:
        ledger = FileLedger(state_root)
        for folder in ("runners", "fenced"):
            (state_root / folder / "a.7.0.json").mkdir()
            (state_root / folder / "b.8.0.json").symlink_to(tmp_path)
            os.mkfifo(state_root / folder / "c.9.0.json")
        (state_root / "queue" / "r-49-000000000000000007-any.a.json").mkdir()
        os.mkfifo(state_root / "live" / "pipe")
        os.mkfifo(state_root / "tmp" / "pipe")
        os.utime(state_root / "tmp" / "pipe", (1, 1))
        ledger.register(Request("b", (Claim.file("x.py"),)))
        ledger.sweep()
        assert os.listdir(state_root / "tmp") == [] and os.listdir(state_root / "live") == ["b"]
        assert check(state_root)

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"\xff\0", b"[]", b'{"limit": "3"}', b'{"limit": 0}', b'{"limit": true}', b'{"quotas": []}',
         b'{"schema": 2, "limit": 3}', b'{"quotas": {"spec:x": null}}'],
    )  # fmt: skip
    def test_terms_that_cannot_be_read_admit_nobody_and_stop_nothing_else(self, state_root: Path, text: bytes) -> None:
        ledger = FileLedger(state_root)
        ledger.configure(limit=2, quotas={"spec:x": 1})
        held = ledger.register(Request("a", (Claim.file("x.py"),)))
        (state_root / "config.json").write_bytes(text)
        for party in (ledger, FileLedger(state_root)):
            with pytest.raises(StateUnreadable, match=r"config\.json"):
                party.register(Request("b"))
            party.release(party.register(Request("no-slot", slot=False)))
            assert party.snapshot().unreadable == ("config.json",)
            party.sweep()
        ledger.renew(held)
        ledger.claim(held, [Claim.file("y.py")])
        ledger.release(held)
        with pytest.raises(StateUnreadable):
            ledger.configure(quotas={})
        ledger.configure(limit=1)
        ledger.register(Request("b"))
        assert only(state_root / "quarantine").read_bytes() == text

    @pytest.mark.parametrize(
        "text",
        [b"", b"\0" * 160, b"9" * 300, b"{}\n", b"x" * 5000, b"00000000000000000001", "²".encode() * 20],
    )
    def test_a_damaged_counter_gives_out_no_token_twice(self, state_root: Path, text: bytes) -> None:
        ledger = FileLedger(state_root)
        first = [ledger.register(Request(name)) for name in "abc"]
        (state_root / "lock").write_bytes(text)
        for party in (FileLedger(state_root), ledger):
            lease = party.register(Request("d"))
            assert lease.token is not None and lease.token > max(one.token or 0 for one in first)
            first.append(lease)
            party.release(lease)
        assert first[-1].token > first[-2].token and check(state_root)  # type: ignore[operator]
        assert (state_root / "lock").read_bytes()[:64].split()[0].isdigit()

    def test_a_state_of_an_earlier_boot_frees_nothing_that_lives_and_its_tokens_end(self, state_root: Path) -> None:
        ledger = FileLedger(state_root)
        lease = ledger.register(Request("a"))
        with open(state_root / "lock", "r+b") as lock:
            lock.seek(21)
            lock.write(b"another-boot".ljust(42))
        again = FileLedger(state_root).register(Request("b"))
        assert (again.token or 0) >> 32 == ((lease.token or 0) >> 32) + 1
        ledger.renew(lease)

    def test_terms_changed_by_hand_apply_at_once(self, state_root: Path) -> None:
        ledger = FileLedger(state_root)
        ledger.register(Request("a"))
        (state_root / "config.json").write_text('{"limit": 1}')
        with pytest.raises(NecrocodeError, match="1 of 1 slots"):
            ledger.register(Request("b"))
        (state_root / "config.json").unlink()
        ledger.register(Request("b"))


def _quarantined(ledger: FileLedger) -> list[str]:
    from necrocode import journal

    events = journal.read(ledger.state.events)
    return [str(event.facts["file"]) for event in events if event.kind == "record.quarantined"]


def test_a_mark_is_of_one_runner_in_one_state_directory(tmp_path: Path) -> None:
    """Two directories with a runner of one id: neither may end what carries the other's mark."""
    assert mark(tmp_path / "one", "r1") != mark(tmp_path / "two", "r1")
    assert mark(tmp_path / "one", "r1") == mark(str(tmp_path / "x" / ".." / "one"), "r1")
