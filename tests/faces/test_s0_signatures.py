"""S0-38: nothing that users of these faces call changes by accident. A new name is added to the snapshot beside this
file on purpose (`python tests/faces/test_s0_signatures.py` writes it); one that changes or goes is told in
CHANGELOG.md."""

from __future__ import annotations

import enum
import importlib
import inspect
from pathlib import Path

import pytest

FACES = {"s0": "necrocode.benchmark", "s3": "necrocode.concurrency"}


def bare(function):
    """The signature without annotations."""
    signature = inspect.signature(function)
    parameters = [it.replace(annotation=it.empty) for it in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def lines_of(name, value):
    if not isinstance(value, type):
        yield name + bare(value)
    elif issubclass(value, enum.Enum):
        yield f"{name}: " + " ".join(f"{member}={it.value}" for member, it in value.__members__.items())
    else:
        yield name + bare(value)
        for member in sorted(vars(value)):
            found = getattr(inspect.getattr_static(value, member), "__func__", inspect.getattr_static(value, member))
            if not member.startswith("_") and (inspect.isfunction(found) or isinstance(found, property)):
                yield f"  {member}" + (bare(found) if inspect.isfunction(found) else "")


def snapshot(module):
    face = importlib.import_module(module)
    return [line for name in sorted(face.__all__) for line in lines_of(name, getattr(face, name))]


@pytest.mark.parametrize("face", FACES)
def test_public_signatures(face):
    kept = Path(__file__).with_name(f"{face}_signatures.txt").read_text().splitlines()
    assert snapshot(FACES[face]) == kept


if __name__ == "__main__":
    for name, module in FACES.items():
        Path(__file__).with_name(f"{name}_signatures.txt").write_text("\n".join(snapshot(module)) + "\n")
