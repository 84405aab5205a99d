"""cap_ids: unguessable text that stands for a reference. How they are made, read and compared.

A cap_id names a place where the host looks, in the open, and proves by 128 bits that its holder
was given it. There are three kinds:

====  ================================  ==========================================================
kind  stands for                        the place, and the proof
====  ================================  ==========================================================
c     an export of one connection       its session id and the export's id; a MAC of both, keyed by
                                        the secret that the exporter's hello has told the importer
r     what a registry has registered    both derived from the registry's secret and the name
s     what was shared                   both random
====  ================================  ==========================================================

The idea is E's and OCapN's sturdyref, with CapTP's swiss number; the name is Capnode's.
"""

# Annotations are no text here: NamedTuple would have the compiler read each, and load it for that.

import os
from binascii import a2b_base64, b2a_base64
from typing import Any, Final, NamedTuple, NoReturn

CONNECTION: Final = "c"
REGISTERED: Final = "r"
SHARED: Final = "s"

PLACE_SIZE = 16
"""Bytes that say where to look: of a session id, for one."""
_PROOF_SIZE = 16
LONGEST = 100
"""Characters of a cap_id, at the most."""


# The base64 of urls, without the module of that name, which loads `re`.
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = str.maketrans("-_", "+/")


class CapId(str):
    """A cap_id: text to be handed on, which is not shown by `repr`, so that no log holds it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<cap_id {self[:9]}...>"  # its kind, and a little of its place


def redacted(value: Any) -> Any:
    """What came from the wire, for an error: without cap_ids, which are secrets."""
    if type(value) is list:
        return [redacted(item) for item in value]
    return CapId(value) if type(value) is str and value.startswith("cap.") else value


class Parts(NamedTuple):
    """A cap_id taken apart. `id` is an export's, for the kind of one connection; else 0."""

    kind: str
    place: bytes
    proof: bytes
    id: int

    def proves(self, proof: bytes) -> bool:
        """Was it made by one who knew? In constant time."""
        import hmac  # which a child that makes no cap_id need not load

        return hmac.compare_digest(self.proof, proof)


class Unknown(LookupError):
    """A cap_id that stands for nothing here. It does not say why: that would help to guess."""

    def __init__(self) -> None:
        super().__init__("this cap_id stands for nothing here, or for nothing any more")


def of_export(session_id: bytes, secret: bytes, id: int) -> CapId:
    """The cap_id of an export, as both of its sides compute it."""
    number = _number(id)
    return _joined(CONNECTION, session_id, proof_of_export(session_id, secret, id), number)


def proof_of_export(session_id: bytes, secret: bytes, id: int) -> bytes:
    """The MAC in the cap_id of an export."""
    return _mac(secret, b"capnode export", session_id, _number(id))


def of_name(secret: bytes, name: str) -> CapId:
    """The cap_id of what is registered under a name: the same in each process with this secret."""
    place = _mac(secret, b"capnode place", name.encode())
    return _joined(REGISTERED, place, _mac(secret, b"capnode proof", name.encode()))


def at_random() -> CapId:
    """A cap_id that nothing leads to."""
    return _joined(SHARED, os.urandom(PLACE_SIZE), os.urandom(_PROOF_SIZE))


def parse(text: str) -> Parts:
    """Take a cap_id apart.

    Raises:
        Unknown: it is none.
    """
    head, kind, content = (*text.split("."), "", "")[:3]
    if head != "cap" or len(text) > LONGEST or text.count(".") != 2:
        _fail()
    try:
        raw = a2b_base64(content.translate(_FROM_URL) + "=" * (-len(content) % 4))
    except ValueError:
        _fail()
    ends = PLACE_SIZE, PLACE_SIZE + _PROOF_SIZE
    parts = Parts(
        kind, raw[: ends[0]], raw[ends[0] : ends[1]], -int.from_bytes(raw[ends[1] :], "big")
    )
    number = _number(parts.id) if kind == CONNECTION else b""
    if _joined(kind, parts.place, parts.proof, number) != text or len(raw) < ends[1]:
        _fail()  # there is one way to write it
    return parts


def _fail() -> NoReturn:
    raise Unknown


def _number(id: int) -> bytes:
    """An export's id, which is 0 or less, in as many bytes as it needs."""
    return (-id).to_bytes((id.bit_length() + 7) // 8, "big")


def _mac(secret: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """Each part behind its length, so that no two lists of parts give the same bytes."""
    import hmac

    message = b"".join([len(part).to_bytes(4, "big") + part for part in (purpose, *parts)])
    return hmac.digest(secret, message, "sha256")[:_PROOF_SIZE]


def _joined(kind: str, *parts: bytes) -> CapId:
    content = b2a_base64(b"".join(parts), newline=False).translate(_TO_URL).decode()
    return CapId(f"cap.{kind}.{content.rstrip('=')}")
