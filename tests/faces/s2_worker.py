"""A real process that does what it is told: each line of stdin is a call on its coordinator, each line of stdout
the answer. Used by the tests of the S2 face; run as a script."""

from __future__ import annotations

import json
import sys

from necrocode.agent_runner import ParallelCoordinator


def main() -> None:
    coordinator = ParallelCoordinator(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        call = json.loads(line)
        try:
            value = getattr(coordinator, call["do"])(*call["args"], **call["kwargs"])
            answer = {"value": list(value) if isinstance(value, tuple) else value}
        except Exception as error:  # noqa: BLE001 - the other side decides what it means
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()
