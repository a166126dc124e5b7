"""The place where one runner works: a linked work tree or a shared clone, on a branch of its own.

`prepare` makes one, `commit` and `collect` bring its work to the branch, `retire` removes it, `list_leftovers` finds
those whose runner is gone. Whatever step is cut short, `prepare` on the same name finds the remains and copes.
Nothing that only this directory holds is ever removed without having been saved first to
refs/necrocode/snap/<name>/<n>; when it cannot be saved, the directory stays and WorkspaceKept says why.
"""

from necrocode.workspace.clones import collect, commit
from necrocode.workspace.entries import is_ours
from necrocode.workspace.included import copy_included
from necrocode.workspace.leftovers import Leftover, list_leftovers
from necrocode.workspace.making import prepare
from necrocode.workspace.place import OURS, SNAPSHOTS, Mode, Workspace, default_directory, ref_name
from necrocode.workspace.removal import delete_tree, empty_trash, preserve, retire

__all__ = [
    "OURS",
    "SNAPSHOTS",
    "Leftover",
    "Mode",
    "Workspace",
    "collect",
    "commit",
    "copy_included",
    "default_directory",
    "delete_tree",
    "empty_trash",
    "is_ours",
    "list_leftovers",
    "prepare",
    "preserve",
    "ref_name",
    "retire",
]
