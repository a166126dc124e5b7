"""Print the code block of README.md that follows the comment `ci: NAME`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

text = (Path(__file__).parent.parent / "README.md").read_text()
match = re.search(rf"<!-- ci: {re.escape(sys.argv[1])} -->\n```\w*\n(.*?)```", text, re.DOTALL)
sys.stdout.write(match[1] if match else sys.exit(f"README.md has no block {sys.argv[1]!r}"))
