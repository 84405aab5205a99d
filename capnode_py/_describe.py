"""What a host says of what it offers, for `help()` and tab completion on the other side's stubs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
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
            "doc": _doc_of(type(value)),
            "members": {name: _member(member) for name, member in members.items()},
        }
    if isinstance(value, dict):
        members = {key: item for key, item in value.items() if _is_public(key)}
        return {"doc": "", "members": {name: _member(item) for name, item in members.items()}}
    return _member(value)


def _doc_of(cls: type) -> str:
    """Its own, or that of the class that it is derived from; not `Target`'s."""
    for owner in cls.__mro__[: cls.__mro__.index(Target)]:
        if owner.__doc__:
            return inspect.cleandoc(owner.__doc__)
    return ""


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
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        del parameters[0]
    return str(
        signature.replace(
            parameters=[each.replace(annotation=_bare(each.annotation)) for each in parameters],
            return_annotation=_bare(signature.return_annotation),
        )
    )


class _Text:
    """Stands for what can be shown, and no more."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _bare(annotation: Any) -> Any:
    """An annotation, without the quotes if it is a text."""
    return _Text(annotation) if isinstance(annotation, str) else annotation


def as_text(description: dict[str, Any], name: str) -> str:
    """What `help()` shows of a description that came from afar."""
    lines = [f"{name}{description.get('signature', '')}", "", description.get("doc", "")]
    for member, said in description.get("members", {}).items():
        lines += ["", f"{member}{said.get('signature', '')}"]
        lines += [f"    {line}" for line in said.get("doc", "").splitlines()]
    return "\n".join(lines).strip()


_MAX_SIGNATURE = 4096


def as_signature(description: dict[str, Any]) -> inspect.Signature | None:
    """The signature of a description that came from afar, for editors and REPLs. It is parsed, not
    evaluated: annotations and defaults can be shown, and are nothing else here.
    """
    text = description.get("signature")
    if type(text) is not str or len(text) > _MAX_SIGNATURE:
        return None
    try:
        (function,) = ast.parse(f"def f{text}: ...").body
        if not isinstance(function, ast.FunctionDef):
            return None
        returns = _shown(function.returns)
        return inspect.Signature(list(_parameters(function.args)), return_annotation=returns)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parameters(given: ast.arguments) -> Iterator[inspect.Parameter]:
    kinds = inspect.Parameter
    placed = [*given.posonlyargs, *given.args]
    without = [None] * (len(placed) - len(given.defaults))
    for place, (arg, default) in enumerate(zip(placed, [*without, *given.defaults], strict=True)):
        early = place < len(given.posonlyargs)
        kind = kinds.POSITIONAL_ONLY if early else kinds.POSITIONAL_OR_KEYWORD
        yield _parameter(arg, kind, default)
    if given.vararg:
        yield _parameter(given.vararg, kinds.VAR_POSITIONAL, None)
    for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _parameter(arg, kinds.KEYWORD_ONLY, default)
    if given.kwarg:
        yield _parameter(given.kwarg, kinds.VAR_KEYWORD, None)


def _parameter(arg: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
    annotation = _shown(arg.annotation)
    return inspect.Parameter(arg.arg, kind, default=_shown(default), annotation=annotation)


def _shown(node: ast.expr | None) -> Any:
    return inspect.Parameter.empty if node is None else _Text(ast.unparse(node))
