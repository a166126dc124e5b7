"""Which resources a task needs, by the words of its agent's type, and how tasks fall into groups."""

from __future__ import annotations

import re
from collections.abc import Iterable

from necrocode.claim import Claim
from necrocode.task_calls.models import AgentTask, InvalidTaskCall

_WORDS = {
    "backend": ("backend_services",),
    "api": ("backend_services",),
    "server": ("backend_services",),
    "frontend": ("frontend_assets", "ui_components"),
    "ui": ("ui_components",),
    "component": ("ui_components",),
    "documentation": ("documentation_files",),
    "docs": ("documentation_files",),
    "database": ("database_config",),
    "schema": ("database_config",),
    "migration": ("database_config",),
}
_GROUPS = {
    "backend_tasks": {"backend", "api", "server", "database", "schema", "migration"},
    "frontend_tasks": {"frontend", "ui", "component", "css", "webui"},
    "documentation_tasks": {"documentation", "docs", "doc"},
    "validation_tasks": {"validation", "test", "testing", "qa", "security", "review"},
}
_TYPES = {"frontend_assets": "directory", "ui_components": "directory", "documentation_files": "directory"}


def words(text: str) -> set[str]:
    """The words of a name, also in the singular: `backend_specialist_1` has backend and specialist."""
    found = set(re.findall(r"[a-z]+", text.lower()))
    return found | {word.removesuffix("s") for word in found}


def required(task: AgentTask) -> set[str]:
    """What the task's context asks for: `resources` by name, and what `agent_type` stands for. A task that says
    neither needs nothing, so that many agents of one type may work at once."""
    named = task.context_data.get("resources", ())
    if isinstance(named, str):
        named = (named,)
    if not isinstance(named, Iterable):
        raise InvalidTaskCall(f"resources {named!r} of {task.agent_id} are no list", hint="give a list of names")
    found = words(str(task.context_data.get("agent_type", "")))
    return {str(name) for name in named} | {one for word in found for one in _WORDS.get(word, ())}


def grouped(tasks: Iterable[AgentTask], types: dict[str, str]) -> dict[str, list[AgentTask]]:
    """The tasks by what they mostly touch, each in one group, in their order."""
    groups: dict[str, list[AgentTask]] = {name: [] for name in (*_GROUPS, "general_tasks")}
    for task in tasks:
        kind = str(task.context_data.get("agent_type") or types.get(task.agent_id) or task.agent_id)
        names = (name for text in (kind, task.task_type) for name, some in _GROUPS.items() if some & words(text))
        groups[next(names, "general_tasks")].append(task)
    return groups


def claim_of(resource: str) -> Claim:
    """The claim on a resource: `KIND:NAME` as everywhere (`file:src/a.py`), any other name as a thing of its own; a
    leading `shared:` shares it. Raises ConfigError."""
    shared, name = ("shared:", resource[7:]) if resource.startswith("shared:") else ("", resource)
    return Claim.parse(f"{shared}{name if ':' in name else f'resource:{name}'}")


def lock_type(claim: Claim) -> str:
    """file, directory or service."""
    if claim.family in ("file", "workspace"):
        return "directory" if claim.path.endswith("**") else "file"
    return _TYPES.get(claim.path, "service")
