"""What the work of an attempt finds in its environment: the user's own, then who it is and where."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from necrocode.lease import Lease
from necrocode.order import Order


def environment(order: Order, lease: Lease, deadline: float | None, state_root: Path, scratch: str) -> dict[str, str]:
    """The user's environment without git's and our own variables, then ours, then the task's.

    `deadline` is on the monotonic clock; `scratch` is the TMPDIR."""
    ports = ",".join(claim.name for claim in lease.claims if claim.family == "port")
    ours = {
        "RUN_ID": order.run_id, "TASK": order.task.id, "ATTEMPT": str(order.attempt), "RUNNER": order.runner_id,
        "TOKEN": str(lease.token), "WORKSPACE": order.path, "BRANCH": order.branch, "PORTS": ports,
        "STATE_DIR": str(state_root),
        "DEADLINE": "" if deadline is None else f"{time.time() + deadline - time.monotonic():.0f}",
    }  # fmt: skip
    env = dict(_users_once() if order.alone else _users())
    env |= {f"NECROCODE_{key}": value for key, value in ours.items() if value}
    env |= {"GIT_TERMINAL_PROMPT": "0", "NO_COLOR": "1", "TMPDIR": scratch}
    return env | {key: str(value) for key, value in order.task.env.items()}


def _users() -> Mapping[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "NECROCODE_"))}


_users_once = cache(_users)
"""The same for a process that does nothing but carry attempts: nobody changes its environment."""
