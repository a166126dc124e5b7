"""python -m bench [NAME...]: see README.md."""

from __future__ import annotations

import sys
from importlib import import_module

from bench.compare import machine

NAMES = ("startup", "ledger", "handover", "noop", "workspaces", "faces")

if __name__ == "__main__":
    print(machine())
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(f"there is no benchmark {name!r}; there are: {', '.join(NAMES)}")
        print(f"\n=== {name}")
        import_module(f"bench.{name}").main()
