"""A codemod with libcst: `raise Error()` becomes `raise Error`, which does the same."""

from __future__ import annotations

import sys
from pathlib import Path

import libcst


class RaiseWithoutCall(libcst.CSTTransformer):
    def leave_Raise(self, original_node: libcst.Raise, updated_node: libcst.Raise) -> libcst.Raise:
        raised = updated_node.exc
        if isinstance(raised, libcst.Call) and not raised.args:
            return updated_node.with_changes(exc=raised.func)
        return updated_node


for path in Path(sys.argv[1]).rglob("*.py"):
    path.write_text(libcst.parse_module(path.read_text()).visit(RaiseWithoutCall()).code)
