"""`python -m necrocode`, and the installed script, are the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run this process's command line and return its exit code."""
    try:
        from necrocode import cli

        return cli.main()
    except KeyboardInterrupt:  # while modules were being read: nothing has been begun
        return 130


if __name__ == "__main__":
    sys.exit(main())
