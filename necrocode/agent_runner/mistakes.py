"""What pydantic found wrong, in words for who wrote it: every field that is wrong, and what may have been meant."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ValidationError

from necrocode.tasktext import near


def mistakes(error: ValidationError, model: type[BaseModel], gone: Collection[str] = ()) -> str:
    """One text for all of it; `gone` are names that were given up on purpose."""
    return "; ".join(
        dict.fromkeys(_told(dict(one), model, gone) for one in error.errors(include_url=False, include_context=False))
    )


def _told(one: dict[str, object], model: type[BaseModel], gone: Collection[str]) -> str:
    loc = one["loc"]
    assert isinstance(loc, tuple)
    name = ".".join(str(part) for part in loc)
    if one["type"] == "extra_forbidden":
        why = " has no meaning here (no containers, servers, registry or credentials)" if name in gone else ""
        return f"{name} is unknown" + (f"; it{why}" if why else near(name, model.model_fields))
    said = str(one["msg"]).removeprefix("Value error, ")
    return f"{name} ({one['input']!r}): {said}" if one["type"] != "missing" else f"{name} is missing"
