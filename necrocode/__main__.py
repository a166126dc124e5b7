"""`python -m necrocode` is the command line."""

from __future__ import annotations

import sys

from necrocode.cli import main

if __name__ == "__main__":
    sys.exit(main())
