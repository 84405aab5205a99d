"""capnode_py: two Python programs call each other over a byte stream.

Functions and objects pass by reference, promises pipeline, references are let go when nobody holds
them. The map of the package, in reading order:

===============  =================================================================================
`_errors`        the error tree
`_limits`        each bound, with the attack that it stops
`_cap_ids`       text that stands for a reference: made, read, compared
`_javascript`    Python types for what JavaScript sends
`_messages`      the words of the protocol, and what a dialect is
`_stub`          what you hold: Stub, Promise, Target
`_cell`          a value that is not here yet, and a call on its way
`_frames`        cutting a byte stream into frames
`codec`          dialects: how messages and values are written
`_tables`        what each side holds of the other, counted
`_reach`         what a peer may reach, and what passes by reference
`_payload`       what has arrived: references swapped, promises waited for
`_map`           a function for map is recorded
`_replay`        and done over there, for each item
`_seam`          to_ref and from_ref, between the engine and a codec
`_outbox`        what leaves: frames, pushes or calls, releases
`_router`        where a call goes: the wire, a queue, or the driver
`_incoming`      what each word of the other side does
`_outgoing`      what this side says of calls
`_holding`       who wants to know: `_released`, `on_broken`
`_delegation`    the cap_ids of one connection
`_exchange`      a call and its answer, alone on their wire, in few steps
`_session`       the engine of one connection
`driver`         what carries a session: asyncio and uvloop, anyio (trio, any stream), or messages
`_capnode`       Capnode: a host, which is what its connections share
`_lasting`       MethodRegistry, share: references that outlive a connection
`_holders`       who holds the targets that want to know
`_membrane`      revocable, attenuate: lending, and taking back
`_peer`          Peer: what you hold of a connection
`_options`       stubs with a time limit
`_leaks`         what is still held, of which type, and where it was made
`_interface`     the far face of a Target's class, for type checkers
`_remote`        Capnode's own face: Remote, stream_from_remote, cap_wrap
`_describe`      what a host says of what it offers, for help() and completion
`_addresses`     the urls of the doors, and the sockets behind them
`_claim`         the wire of a child: its stdin and stdout, claimed for good
`_doors`         connect, attach, pair
`_listen`        listen
`_logs`          log records of one program in the logging of another
`_websocket`     a byte stream over a WebSocket
`_start`         a child's start on any driver: the options of spawn, and a process made of them
`_child`         a child process on any driver: what it says, what became of it, its end
`_watchdog`      what a child does whose parent is gone, or whose event loop is stuck
`_spawn`         spawn: a child process as a peer
`_lives`         when a child is started again, and what its callers are told
`_supervise`     a child process that is started again when it dies
`_stdio`         the child's side: serve_stdio, stdio
`sync`           the doors for scripts, which block
===============  =================================================================================

Importing it loads no event loop: doors do, when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._capnode import Capnode
from ._errors import (
    CannotPass,
    CapnodeError,
    LimitExceeded,
    LocalProtocolError,
    PeerClosed,
    PeerDied,
    PeerLost,
    PeerRestarted,
    ProtocolError,
    Released,
    RemoteError,
    RemoteProtocolError,
    Revoked,
)
from ._limits import Limits
from ._reach import by_copy
from ._stub import Promise, Stub, Target

if TYPE_CHECKING:
    from . import sync as sync
    from ._doors import attach, connect, pair
    from ._interface import interface_of
    from ._javascript import URL, BigInt, Bytes, Headers, undefined
    from ._lasting import MethodRegistry, share, unshare
    from ._leaks import trace_references
    from ._listen import Listener, listen
    from ._logs import forward_logs, log_receiver
    from ._membrane import attenuate, revocable
    from ._peer import Peer, Watch
    from ._remote import Remote, Serializer, cap_wrap, stream_from_remote
    from ._spawn import spawn
    from ._stdio import serve_stdio, stdio
    from ._supervise import SupervisedPeer, supervise
    from .driver._handlers import current_peer, in_thread, wait

__version__ = "0.1.0"

_LAZY = {
    "BigInt": "_javascript",
    "Bytes": "_javascript",
    "Headers": "_javascript",
    "Listener": "_listen",
    "MethodRegistry": "_lasting",
    "Peer": "_peer",
    "Remote": "_remote",
    "Serializer": "_remote",
    "Watch": "_peer",
    "SupervisedPeer": "_supervise",
    "URL": "_javascript",
    "attach": "_doors",
    "attenuate": "_membrane",
    "cap_wrap": "_remote",
    "connect": "_doors",
    "current_peer": "driver._handlers",
    "forward_logs": "_logs",
    "in_thread": "driver._handlers",
    "interface_of": "_interface",
    "listen": "_listen",
    "log_receiver": "_logs",
    "pair": "_doors",
    "revocable": "_membrane",
    "serve_stdio": "_stdio",
    "share": "_lasting",
    "spawn": "_spawn",
    "stdio": "_stdio",
    "stream_from_remote": "_remote",
    "supervise": "_supervise",
    "trace_references": "_leaks",
    "undefined": "_javascript",
    "unshare": "_lasting",
    "wait": "driver._handlers",
}


if not TYPE_CHECKING:  # to whom it would mean that any name is one of this module

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name == "sync":
            return import_module(f"{__name__}.sync")
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "sync"})


__all__ = [
    "BigInt",
    "Bytes",
    "CannotPass",
    "Capnode",
    "CapnodeError",
    "Headers",
    "LimitExceeded",
    "Limits",
    "Listener",
    "LocalProtocolError",
    "MethodRegistry",
    "Peer",
    "PeerClosed",
    "PeerDied",
    "PeerLost",
    "PeerRestarted",
    "Promise",
    "ProtocolError",
    "Released",
    "Remote",
    "RemoteError",
    "RemoteProtocolError",
    "Revoked",
    "Serializer",
    "Stub",
    "SupervisedPeer",
    "Target",
    "URL",
    "Watch",
    "attach",
    "attenuate",
    "by_copy",
    "cap_wrap",
    "connect",
    "current_peer",
    "forward_logs",
    "in_thread",
    "interface_of",
    "listen",
    "log_receiver",
    "pair",
    "revocable",
    "serve_stdio",
    "share",
    "spawn",
    "stdio",
    "stream_from_remote",
    "supervise",
    "trace_references",
    "undefined",
    "unshare",
    "wait",
]
