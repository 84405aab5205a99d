"""What a host says of what it offers, for `help()` and tab completion on the other side's stubs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ._reach import public_members
from ._stub import FUNCTIONS, Target


def describe(value: Any) -> dict[str, Any]:
    """The docstring and the signature of a function; the docstring and the members of an object, or
    of a dict, each described likewise.

    What a peer may not reach is not named. It runs no user code.
    """
    if isinstance(value, Target):
        members = public_members(type(value))
        return {
            "doc": inspect.getdoc(type(value)) or "",
            "members": {name: _member(member) for name, member in members.items()},
        }
    if isinstance(value, dict):
        members = {key: item for key, item in value.items() if _is_public(key)}
        return {"doc": "", "members": {name: _member(item) for name, item in members.items()}}
    return _member(value)


def _is_public(key: Any) -> bool:
    return type(key) is str and key.isidentifier() and key[:1] != "_"


def _member(member: Any) -> dict[str, Any]:
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if not isinstance(member, FUNCTIONS):
        doc = inspect.getdoc(member) if hasattr(member, "__get__") else None
        return {"doc": doc or ""}
    return {"doc": inspect.getdoc(member) or "", "signature": _signature(member)}


def _signature(function: Callable[..., Any]) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin function that does not tell
        return "(...)"
    first = next(iter(signature.parameters), None)
    if first in ("self", "cls"):
        parameters = list(signature.parameters.values())[1:]
        signature = signature.replace(parameters=parameters)
    return str(signature)


def as_text(description: dict[str, Any], name: str) -> str:
    """What `help()` shows of a description that came from afar."""
    lines = [f"{name}{description.get('signature', '')}", "", description.get("doc", "")]
    for member, said in description.get("members", {}).items():
        lines += ["", f"{member}{said.get('signature', '')}"]
        lines += [f"    {line}" for line in said.get("doc", "").splitlines()]
    return "\n".join(lines).strip()
