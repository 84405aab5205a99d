"""`Frozen`: what a frozen dataclass is, for those that every program makes.

`dataclasses` loads `inspect`, and has a compiler write each class: a third of `import capnode_py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, dataclass_transform

if TYPE_CHECKING:
    from inspect import Signature


class _ShowsFields:
    """What `inspect.signature` shows of a class, and so editors and REPLs."""

    def __get__(self, _instance: Any, cls: type[Frozen]) -> Signature:
        from inspect import Parameter, Signature

        return Signature(
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    default=getattr(cls, name, Parameter.empty),
                    annotation=annotation,
                )
                for name, annotation in cls._fields.items()
            ]
        )


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Frozen:
    """Values under the names that a subclass annotates, given by keyword, or what stands there as
    the default; equal if all are.
    """

    _fields: ClassVar[dict[str, Any]] = {}
    __signature__: ClassVar = _ShowsFields()

    def __init_subclass__(cls) -> None:
        cls._fields = cls._fields | cls.__annotations__

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        for name in values.keys() - cls._fields:
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {name!r}")
        for name in cls._fields:
            if name not in values and not hasattr(cls, name):
                raise TypeError(f"{cls.__name__}() needs {name}=")
            # One by one, and not into __dict__, which would make each later read slower.
            object.__setattr__(self, name, values[name] if name in values else getattr(cls, name))
        self.__post_init__()

    def __post_init__(self) -> None:
        """Raises what is wrong with the values."""

    def __replace__(self, **changes: Any) -> Self:
        """For `copy.replace`: another one, with these values changed."""
        return type(self)(**{**vars(self), **changes})

    def __setattr__(self, name: str, _value: Any) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} does not change: make another one ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} does not change: make another one ({name})")

    def __repr__(self) -> str:
        return self._shown()

    def _shown(self, *, without: str = "") -> str:
        values = [f"{name}={getattr(self, name)!r}" for name in self._fields if name != without]
        return f"{type(self).__name__}({', '.join(values)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))
