"""The far face of a `Target` class, written out for type checkers and editors.

Python's types cannot say "this class, but each method gives a promise". Where the methods are
``async def``, the class itself says it well enough; for others the face is written down as
Protocols: the same names, signatures and docstrings; results as they arrive, as promises.

    def add(self, a: int) -> int      def add(self, a: int | Promise[int]) -> Promise[int]
    def open(self) -> Table           def open(self) -> PromisedTable

`PromisedTable` is a `Table` that can be awaited: types for the calls through a promise. Where
callers block, methods give their results as they arrive, and only properties are promises, which
`Peer.get` reads.
"""

from __future__ import annotations

import builtins
import collections.abc
import enum
import functools
import inspect
import keyword
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from ._reach import is_copied, is_method, is_property
from ._stub import Promise, Target

_WIDTH = 100
_PLAIN = (type(None), bool, int, float, str, bytes)
_ANSWERS = (
    Promise,
    collections.abc.Awaitable,
    collections.abc.Coroutine,
)
_BARE = {
    dict: "dict[str, Any]",
    list: "list[Any]",
    set: "set[Any]",
    frozenset: "frozenset[Any]",
    tuple: "tuple[Any, ...]",
}
_STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
_LIBRARY = sys.stdlib_module_names
_UNIONS = (typing.Union, types.UnionType)


def interface_of(*classes: type[Target], blocking: bool = False) -> str:
    """The source of a module with a Protocol for each `Target` class, and for those that its
    methods take and give. The command is ``capnode stubs module:Class``.

    What Python's types do not tell, or what cannot be found, is ``Any``.

    Args:
        classes: of what the other side offers.
        blocking: for the doors of `capnode_py.sync`, where a call gives the value itself; the
            command is ``capnode stubs --sync module:Class``.

    Raises:
        TypeError: it is no `Target` class.
    """
    given: tuple[Any, ...] = classes
    for cls in given:
        if not isinstance(cls, type) or not issubclass(cls, Target):
            raise TypeError(f"interface_of() takes classes that inherit from Target, not {cls!r}")
    return _Module(classes, blocking=blocking).source()


class _Member(NamedTuple):
    """What can be reached by a name."""

    name: str
    function: Any
    is_property: bool
    bound: bool  # its first parameter is not the caller's


def _members(cls: type) -> Iterator[_Member]:
    """What `_reach` lets through, in the order in which it is written."""
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if owner is not Target and owner is not object:
            found.update(vars(owner))
    for name, member in found.items():
        if name[:1] == "_" or not name.isidentifier() or keyword.iskeyword(name):
            continue
        if is_property(member):
            getter = member.fget if isinstance(member, property) else member.func
            yield _Member(name, getter, is_property=True, bound=True)
        elif isinstance(member, (staticmethod, classmethod)):
            bound = isinstance(member, classmethod)
            yield _Member(name, member.__func__, is_property=False, bound=bound)
        elif is_method(member):
            yield _Member(name, member, is_property=False, bound=True)


class _Module:
    """The text of the module, class by class: writing one may ask for more."""

    def __init__(self, classes: tuple[type[Target], ...], *, blocking: bool) -> None:
        self.blocking = blocking
        self._asked_for = classes
        self._names: dict[type, str] = {}
        self._promised: set[type] = set()
        self._modules: set[str] = set()
        self._abc: set[str] = set()
        self._typing: set[str] = set()
        for cls in classes:
            self.name_of(cls)

    def source(self) -> str:
        bodies: dict[type, str] = {}
        while len(bodies) < len(self._names):
            cls = next(cls for cls in self._names if cls not in bodies)
            bodies[cls] = _Face(self, cls).source()
        text = "\n\n".join(
            bodies[cls] + (self._promise_of(name) if cls in self._promised else "")
            for cls, name in self._names.items()
        )
        return self._head() + "\n\n" + text

    def _head(self) -> str:
        asked = " ".join(f"{cls.__module__}:{cls.__qualname__}" for cls in self._asked_for)
        asked = f"--sync {asked}" if self.blocking else asked
        if self._promised:
            self._abc.add("Awaitable")
        abc = f"from collections.abc import {', '.join(sorted(self._abc))}\n" if self._abc else ""
        names = ", ".join(["TYPE_CHECKING", *sorted({"Protocol", *self._typing})])
        library = [name for name in self._modules if name.partition(".")[0] in _LIBRARY]
        imports = "".join(f"    import {name}\n" for name in sorted(library))
        imports += "\n" if imports else ""
        others = self._modules.difference(library)
        imports += "".join(f"    import {name}\n" for name in sorted(others))
        return (
            f'"""The far face of what it was written from: `capnode stubs {asked}`."""\n\n'
            "from __future__ import annotations\n\n"
            f"{abc}from typing import {names}\n\n"
            f"if TYPE_CHECKING:\n{imports}    from capnode_py import Promise\n"
        )

    def _promise_of(self, name: str) -> str:
        return (
            f"\n\nclass Promised{name}({name}, Awaitable[{name}], Protocol):\n"
            f'    """A `{name}` that is not here yet: await it, or call through it."""\n\n'
            "    def cancel(self) -> None: ...\n"
        )

    def name_of(self, cls: type) -> str:
        """What a Target's face is called here."""
        if cls not in self._names:
            taken = self._names.values()
            name = cls.__name__
            while name in taken:
                name += "_"
            self._names[cls] = name
        return self._names[cls]

    def promised(self, cls: type) -> str:
        self._promised.add(cls)
        return f"Promised{self.name_of(cls)}"

    def from_abc(self, name: str) -> str:
        """A name from collections.abc."""
        self._abc.add(name)
        return name

    def imported(self, name: str) -> str:
        """A module's name, or one from typing."""
        if name in ("Any", "Literal"):
            self._typing.add(name)
        else:
            self._modules.add(name)
        return name


class _Face:
    """One class as a Protocol."""

    def __init__(self, module: _Module, cls: type) -> None:
        self._module = module
        self._cls = cls
        self._members = list(_members(cls))
        self._shadowed = {member.name for member in self._members}

    def source(self) -> str:
        parts = [_docstring(self._cls.__dict__.get("__doc__"), "    ")]
        parts += map(self._member, self._members)
        body = "\n".join(part for part in parts if part) or "    ...\n"
        return f"class {self._module.name_of(self._cls)}(Protocol):\n{body}"

    def _member(self, member: _Member) -> str:
        function = _unwrapped(member.function)
        signature = _signature(function)
        doc = _docstring(getattr(function, "__doc__", None) if function else None, " " * 8)
        if signature is None:
            returns = self._result(Any)
            head = self._def(member.name, ["self", "*args: Any", "**kwargs: Any"], returns)
            self._module.imported("Any")
            return _bodied(head, "")

        kind = self._resolved(signature.return_annotation, function)
        if member.is_property:
            returns = self._promise(kind)
            return "    @property\n" + _bodied(self._def(member.name, ["self"], returns), doc)
        given = list(signature.parameters.values())[1 if member.bound else 0 :]
        parameters = ["self", *self._parameters(given, function)]
        return _bodied(self._def(member.name, parameters, self._result(kind)), doc)

    @staticmethod
    def _def(name: str, parameters: list[str], returns: str) -> str:
        line = f"    def {name}({', '.join(parameters)}) -> {returns}:"
        if len(line) + 4 <= _WIDTH:
            return line
        lines = [f"        {parameter},\n" for parameter in parameters]
        inner = "".join(
            line if len(line) <= _WIDTH else line.replace(" | Promise[", "\n        | Promise[", 1)
            for line in lines
        )
        return f"    def {name}(\n{inner}    ) -> {returns}:"

    def _parameters(self, given: list[inspect.Parameter], function: Any) -> Iterator[str]:
        before = None
        starred = False
        for parameter in given:
            kind = parameter.kind
            if before is parameter.POSITIONAL_ONLY and kind is not parameter.POSITIONAL_ONLY:
                yield "/"
            if kind is parameter.KEYWORD_ONLY and not starred:
                starred = True
                yield "*"
            starred = starred or kind is parameter.VAR_POSITIONAL
            before = kind
            yield self._parameter(parameter, function)
        if before is inspect.Parameter.POSITIONAL_ONLY:
            yield "/"

    def _parameter(self, parameter: inspect.Parameter, function: Any) -> str:
        text = self._given(self._resolved(parameter.annotation, function))
        if text != "Any":  # a promise may stand wherever a value can
            text = f"{text} | Promise[{text}]"
        text = f"{_STARS.get(parameter.kind, '')}{parameter.name}: {text}"
        if parameter.default is parameter.empty:
            return text
        plain = type(parameter.default) in _PLAIN and len(repr(parameter.default)) < _WIDTH // 2
        return f"{text} = {_literal(parameter.default)}" if plain else f"{text} = ..."

    # Types.

    def _resolved(self, annotation: Any, function: Any) -> Any:
        """The type that an annotation stands for; Any if there is none, or it cannot be found."""
        if annotation is inspect.Parameter.empty:
            return Any
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        nested = {name: cls for name, cls in vars(self._cls).items() if isinstance(cls, type)}
        try:
            return typing.get_type_hints(holder, getattr(function, "__globals__", {}), nested)["it"]
        except Exception:  # noqa: BLE001 - whatever evaluating a user's annotation raises
            return Any

    def _result(self, kind: Any) -> str:
        """A result, as the caller gets it."""
        return self._arrives(kind) if self._module.blocking else self._promise(kind)

    def _promise(self, kind: Any) -> str:
        """What is not here yet."""
        if typing.get_origin(kind) in _ANSWERS:
            kind = (typing.get_args(kind) or (Any,))[-1]
        if kind is typing.Self:
            kind = self._cls
        if isinstance(kind, type) and issubclass(kind, Target) and kind is not Target:
            return self._module.promised(kind)
        return f"Promise[{self._arrives(kind)}]"

    def _arrives(self, kind: Any) -> str:
        return self._type(kind, self._arrives, self._given, arrives=True)

    def _given(self, kind: Any) -> str:
        return self._type(kind, self._given, self._arrives, arrives=False)

    def _type(
        self, kind: Any, same: Callable[[Any], str], other: Callable[[Any], str], *, arrives: bool
    ) -> str:
        """A type as text: of what arrives here, or of what is given to the other side.

        Args:
            kind: the type.
            same: writes the types within it that cross in the same direction.
            other: writes those that cross in the other one, of a function's arguments.
            arrives: it arrives here.
        """
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind is None or kind is type(None):
            return "None"
        if origin in _UNIONS:
            return " | ".join(dict.fromkeys(map(same, args)))
        if origin is typing.Annotated:
            return same(args[0])
        if origin is Literal and all(type(value) in _PLAIN for value in args):
            return f"{self._module.imported('Literal')}[{', '.join(map(_literal, args))}]"
        if origin is collections.abc.Callable:
            return self._function(args, same, other, arrives=arrives)
        if origin in _ANSWERS:
            return same(args[-1])
        if origin is tuple:
            return self._tuple(args, same, arrives=arrives)
        if isinstance(origin, type):
            return f"{self._class(origin)}[{', '.join(map(same, args))}]"
        if kind is typing.Self:
            kind = self._cls
        if isinstance(kind, type) and kind is not Any:  # which is a class since Python 3.11
            return self._plain_class(kind, arrives=arrives)
        return self._module.imported("Any")

    def _function(
        self,
        args: tuple[Any, ...],
        same: Callable[[Any], str],
        other: Callable[[Any], str],
        *,
        arrives: bool,
    ) -> str:
        takes, gives = args or (..., Any)
        taken = "..."
        if isinstance(takes, list):
            taken = "[" + ", ".join(map(other, takes)) + "]"
        if arrives:  # a stub, whose calls give promises
            result = self._result(gives)
        else:  # ours: it may be a `def` or an `async def`, and the other side sees a promise
            result = same(gives)
            if result != "Any":
                result = f"{result} | {self._class(collections.abc.Awaitable)}[{result}]"
        return f"{self._module.from_abc('Callable')}[{taken}, {result}]"

    def _tuple(self, args: tuple[Any, ...], same: Callable[[Any], str], *, arrives: bool) -> str:
        if not arrives:
            inner = ["..." if arg is ... else same(arg) for arg in args]
            return f"{self._class(tuple)}[{', '.join(inner) or '()'}]"
        inner = list(dict.fromkeys(same(arg) for arg in args if arg is not ...))
        return f"{self._class(list)}[{' | '.join(inner) or self._module.imported('Any')}]"

    def _plain_class(self, kind: type, *, arrives: bool) -> str:
        if kind is tuple and arrives:
            kind = list
        if kind in _BARE:
            self._module.imported("Any")
            return _BARE[kind]
        if issubclass(kind, Target):
            return self._module.imported("Any") if kind is Target else self._module.name_of(kind)
        if arrives and is_copied(kind):
            return self._copied(kind)
        return self._class(kind)

    def _copied(self, kind: type) -> str:
        """What an object of a class that is `by_copy` arrives as."""
        if not issubclass(kind, enum.Enum):
            self._module.imported("Any")
            return f"{self._class(dict)}[{self._class(str)}, Any]"
        kinds = {type(member.value) for member in kind}
        return " | ".join(sorted(map(self._arrives, kinds)))

    def _class(self, kind: type) -> str:
        """A class by its name."""
        name = kind.__qualname__
        if kind.__module__ == "builtins" and hasattr(builtins, name):
            return f"{self._module.imported('builtins')}.{name}" if name in self._shadowed else name
        if (
            "<" in name
            or getattr(sys.modules.get(kind.__module__), kind.__name__, kind) is not kind
        ):
            return self._module.imported("Any")
        if kind.__module__ == "__main__":
            return self._module.imported("Any")
        if kind.__module__ == "collections.abc":
            return self._module.from_abc(name)
        return f"{self._module.imported(kind.__module__)}.{name}"


def _unwrapped(function: Any) -> Any:
    return None if isinstance(function, functools.partialmethod) else inspect.unwrap(function)


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _literal(value: Any) -> str:
    text = repr(value)
    return f'"{text[1:-1]}"' if text[:1] == "'" and '"' not in text else text


def _bodied(head: str, doc: str) -> str:
    return f"{head}\n{doc}        ...\n" if doc else f"{head} ...\n"


def _docstring(text: str | None, indent: str) -> str:
    if not text:
        return ""
    text = inspect.cleandoc(text).replace("\\", "\\\\").replace('"""', r"\"\"\"")
    lines = text.splitlines()
    if len(lines) == 1 and not text.endswith('"'):
        return f'{indent}"""{text}"""\n'
    inner = "\n".join(indent + line if line else "" for line in lines)
    return f'{indent}"""{inner.lstrip()}\n{indent}"""\n'
