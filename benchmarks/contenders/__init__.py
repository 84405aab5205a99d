"""The columns of the big table: this library on each driver, what it stands on, and its peers.

Each is a module that is imported only in its own process, since most of them need a package.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from .base import Contender


class Entry(NamedTuple):
    """Where a contender is found.

    Attributes:
        name: of the column.
        at: module and class, and what the class is given.
        needs: the modules that must be installed, and how pip calls what has them.
        ours: this library itself.
    """

    name: str
    at: tuple[str, ...]
    needs: tuple[str, str] = ("", "")
    ours: bool = False

    def missing(self) -> str:
        """Why it cannot run; "" if it can."""
        module, package = self.needs
        return f"{package} is not installed" if module and find_spec(module) is None else ""

    def make(self) -> Contender:
        module, name, *arguments = self.at
        kind: type[Contender] = getattr(import_module(f".{module}", __package__), name)
        return kind(*arguments)


UVLOOP = ("uvloop", "uvloop")
ENTRIES = [
    Entry("capnode, uvloop", ("ours", "Capnode", "uvloop"), UVLOOP, ours=True),
    Entry("capnode, asyncio", ("ours", "Capnode", "asyncio"), ours=True),
    Entry("capnode, trio", ("ours", "Capnode", "trio"), ("trio", "trio"), ours=True),
    Entry("capnode, blocking", ("ours", "BlockingCapnode"), ours=True),
    Entry("floor, uvloop", ("floors", "LoopFloor", "uvloop"), UVLOOP),
    Entry("floor, blocking", ("floors", "BlockingFloor")),
    Entry("Connection", ("multi", "ByConnection")),
    Entry("Manager", ("multi", "ByManager")),
    Entry("RPyC", ("by_rpyc", "ByRpyc"), ("rpyc", "rpyc")),
    Entry("Pyro5", ("by_pyro", "ByPyro"), ("Pyro5", "Pyro5")),
    Entry("execnet", ("by_execnet", "ByExecnet"), ("execnet", "execnet")),
    Entry("pycapnp", ("by_capnp", "ByCapnp"), ("capnp", "pycapnp")),
    Entry("gRPC aio", ("by_grpc", "ByGrpc"), ("grpc_tools", "grpcio and grpcio-tools")),
    Entry("MCP SDK", ("by_mcp", "ByMcp"), ("mcp", "mcp")),
]


def entry(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == name)
