"""What the fault tests share: how much they do, and how they tell of it."""

from __future__ import annotations

import os
from collections.abc import Callable

THOROUGH = bool(os.environ.get("NECROCODE_THOROUGH"))
"""Everything, instead of what fits the time of a pull request."""

Proof = Callable[..., None]
"""`proof(goal, injected, survived)`: the fixture."""
SEED = int(os.environ.get("NECROCODE_SEED", "1"))
