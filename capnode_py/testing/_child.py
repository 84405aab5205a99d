"""A child process that serves a class of the test's own: no plugin file has to be written."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

_SERVE = (
    "import sys; sys.path[:] = {path!r}; sys.argv = [{name!r}]; "
    "from capnode_py.testing._child import serve; serve({module!r}, {file!r}, {name!r})"
)


def argv_of(make: Callable[[], Any], /) -> list[str]:
    """The command of a child process that serves ``make()``: for `spawn`, in tests.

        class Notes(capnode.Target): ...

        async with capnode.spawn(argv_of(Notes)) as peer: ...

    The child imports the module of `make`, with this process's ``sys.path``.

    Args:
        make: a class, or a function without parameters that gives the index, at the top level of
            its module.

    Raises:
        TypeError: it is something else, which another process cannot find by its name.
    """
    given: Any = make
    name = getattr(given, "__qualname__", "")
    found = inspect.isfunction(given) or isinstance(given, type)
    file = inspect.getsourcefile(given) if found else None
    if file is None or not name.replace(".", "").isidentifier():
        raise TypeError(
            f"argv_of() takes a class or a function from the top level of a module, not {make!r}: "
            "the child finds it there by its name"
        )
    serve = _SERVE.format(path=sys.path, name=name, module=make.__module__, file=file)
    return [sys.executable, "-c", serve]


def serve(module: str, file: str, name: str) -> None:
    """In the child."""
    from .._stdio import serve_stdio

    found = _imported(module, file)
    for step in name.split("."):
        found = getattr(found, step)
    serve_stdio(found())


def _imported(name: str, file: str) -> Any:
    """The module, by its name, or from its file: test modules are often not on the path."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        pass
    else:
        if getattr(module, "__file__", None) == file:
            return module
    if name == "__main__":
        name = "__mp_main__"  # as multiprocessing calls the main module of a parent
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python module")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
