"""ComponentRegistry: the parts of one running task that have traces or a configuration to give, per thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from necrocode.clock import wall
from necrocode.futures import attempt

_T = TypeVar("_T")
_GROUPS = ("agents", "models", "tools", "simulators", "callbacks")
_SINGLE = ("environment", "user")


class ComponentRegistry:
    """What was registered by this thread, and by no other: tasks that run side by side never see each other's.

    A component with `gather_traces()` is asked for its traces, one with `gather_config()` for its configuration."""

    def __init__(self, benchmark_config: Mapping[str, Any] | None = None) -> None:
        self._benchmark_config = dict(benchmark_config or {})
        self._own = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return ComponentRegistry, (self._benchmark_config,)  # what a thread registered stays with it

    def _map(self, name: str) -> dict[Any, Any]:
        found: dict[Any, Any] = self._own.__dict__.setdefault(name, {})
        return found

    @property
    def _trace_registry(self) -> dict[str, Any]:
        return self._map("traces")

    @property
    def _component_id_map(self) -> dict[int, str]:
        return self._map("ids")

    @property
    def _config_registry(self) -> dict[str, Any]:
        return self._map("configs")

    @property
    def _config_component_id_map(self) -> dict[int, str]:
        return self._map("config_ids")

    def register(self, category: str, name: str, component: _T) -> _T:
        """Remember the component under this name and return it; doing so again changes nothing. Another component of
        the same name is kept beside it, as `name_2`, `name_3`, ...

        Raises ValueError for a component that is known under another name."""
        key = f"{category}/{name}"
        known = self._component_id_map.get(id(component)) or self._config_component_id_map.get(id(component))
        if known is not None:
            if known == key or known.rpartition("_")[0] == key:
                return component
            raise ValueError(f"this component is registered as {known!r} already, and cannot be {key!r} too")
        key = self._free(key)
        if callable(getattr(component, "gather_traces", None)):
            self._trace_registry[key] = component
            self._component_id_map[id(component)] = key
        if callable(getattr(component, "gather_config", None)):
            self._config_registry[key] = component
            self._config_component_id_map[id(component)] = key
        return component

    def _free(self, key: str) -> str:
        taken, number, free = self._trace_registry.keys() | self._config_registry.keys(), 1, key
        while free in taken:
            number += 1
            free = f"{key}_{number}"
        return free

    def clear(self) -> None:
        """Forget what this thread registered."""
        self._own.__dict__.clear()

    def collect_traces(self) -> dict[str, Any]:
        """The traces of all components of this thread, by category and name. What cannot give them gives its error."""
        return _collected(self._trace_registry, "gather_traces")

    def collect_configs(self) -> dict[str, Any]:
        """The configurations of all components of this thread, and the benchmark's."""
        return {**_collected(self._config_registry, "gather_config"), "benchmark": dict(self._benchmark_config)}


def _collected(components: Mapping[str, Any], method: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(wall(), UTC).isoformat(),
            "thread_id": threading.get_ident(),
            "total_components": len(components),
        },
        **{group: {} for group in _GROUPS},
        **dict.fromkeys(_SINGLE),
        "other": {},
    }
    for key, component in components.items():
        category, _, name = key.partition("/")
        caught = attempt(getattr(component, method), (), {})
        value = caught.value if caught.ok else {"error": str(caught.value), "error_type": type(caught.value).__name__}
        if category in _SINGLE:
            found[category] = value
        else:
            found[category if category in _GROUPS else "other"][name] = value
    return found
