"""File systems to harm: mounted where only this process and its children see them, so that nothing of them is left when
these have ended, however they end."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_PIDS = 0x00020000, 0x20000000
READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_GET_FREE, _CONFIGURE, _AUTOCLEAR = 0x4C82, 0x4C0A, 4
_CONFIG_BYTES, _FLAGS_AT = 304, 8 + 52
"""struct loop_config: the descriptor, the block size, struct loop_info64 (its lo_flags), and eight reserved words."""
_GOING_DOWN = 0x8004587D
_WITHOUT_LOG = 2


def lacking_root() -> str:
    return "" if os.geteuid() == 0 and _may_mount() else "right to mount (root)"


def lacking_loop() -> str:
    return lacking_root() or ("" if os.path.exists("/dev/loop-control") else "loop device")


def _may_mount() -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own_mounts()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def own_mounts(*, pids: bool = False) -> None:
    """From now on this process has mounts of its own (and its next child is the first of a namespace of processes)."""
    _done(_LIBC.unshare(_NEW_MOUNTS | (_NEW_PIDS if pids else 0)), "unshare")
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)


def mount(source: str, place: Path | str, kind: str, options: str = "", flags: int = 0) -> None:
    _mount(source, str(place), kind, flags, options)


def bind(source: Path, place: str) -> None:
    _mount(str(source), place, "", _BIND)


def remount(place: Path, options: str = "", *, read_only: bool = False) -> None:
    _mount("none", str(place), "", _REMOUNT | (READ_ONLY if read_only else 0), options)


def unmount(place: Path) -> None:
    """Patiently: a process that was killed just now may not have let go yet."""
    until = time.monotonic() + 10
    while _LIBC.umount2(os.fsencode(place), 0):
        number = ctypes.get_errno()
        if time.monotonic() > until:
            raise OSError(number, os.strerror(number), str(place))
        time.sleep(0.001)


def _mount(source: str, place: str, kind: str, flags: int, options: str = "") -> None:
    words = (os.fsencode(word) for word in (source, place, kind))
    _done(_LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {place}")


def _done(code: int, what: str) -> None:
    if code:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def make_image(path: Path, kind: str) -> None:
    """An empty ext4 or XFS in a file with holes."""
    with open(path, "wb") as image:
        image.truncate((320 if kind == "xfs" else 64) << 20)
    subprocess.run([f"mkfs.{kind}", "-q", "-f" if kind == "xfs" else "-F", str(path)], check=True, capture_output=True)


def mount_image(path: Path, place: Path, kind: str) -> None:
    """By a loop device that goes with the mount."""
    image = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        loop = _loop(image)
    finally:
        os.close(image)
    try:
        mount(f"/proc/self/fd/{loop}", place, kind)
    finally:
        os.close(loop)


def _loop(image: int) -> int:
    facts = bytearray(_CONFIG_BYTES)
    struct.pack_into("I", facts, 0, image)
    struct.pack_into("I", facts, _FLAGS_AT, _AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(100):
            loop = os.open(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _CONFIGURE, facts)
                return loop
            except OSError:  # somebody else was faster, or the last user has not let go yet
                os.close(loop)
                time.sleep(0.002)
    finally:
        os.close(control)
    raise OSError("no loop device can be had")


def flush(place: Path) -> None:
    """All of this file system, and of no other."""
    handle = os.open(place, os.O_RDONLY)
    try:
        _done(_LIBC.syncfs(handle), "syncfs")
    finally:
        os.close(handle)


def cut_power(handle: int) -> None:
    """What was not flushed to the disk never will be; `handle` is of the file system's root."""
    fcntl.ioctl(handle, _GOING_DOWN, struct.pack("I", _WITHOUT_LOG))
