"""Hellos, and what no correct peer sends: the session ends, says why, and pending calls fail."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from capnode_py import (
    Limits,
    LocalProtocolError,
    PeerLost,
    ProtocolError,
    RemoteError,
    RemoteProtocolError,
    Target,
)
from capnode_py._frames import frame_head
from capnode_py._messages import WORDS, Hello
from capnode_py._session import VERSIONS
from capnode_py.codec.cbor_writer import TAG_REF
from capnode_py.testing import FakeDriver, Fence, Wire

CALL, PUSH, PULL, SEND, RESOLVE, REJECT, RELEASE, CANCEL, PING, PONG, BYE, ABORT, *_ = WORDS


def frame(*messages: Any) -> bytes:
    """A frame of messages that no session would make."""
    content = cbor2.dumps(list(messages))
    return frame_head(len(content)) + content


def ref(*content: Any) -> cbor2.CBORTag:
    return cbor2.CBORTag(TAG_REF, list(content))


# Hellos.


def test_a_hello_is_the_first_thing_each_side_says(wire: Wire) -> None:
    """T8"""
    near, far = wire.link(limits=Limits(max_frame=5_000), greet=False)
    assert near.session.wants_hello
    wire.run()
    assert far.session.remote is not None
    assert far.session.remote.max_frame == 5_000
    assert tuple(far.session.remote.versions) == VERSIONS
    assert near.peer.info is not None
    assert near.peer.info.application == "far"
    assert not near.session.wants_hello


def test_calls_made_before_the_hello_has_come_are_sent_behind_ours(wire: Wire) -> None:
    """P3: a round trip is not waited for."""
    near, far = wire.link(far_index=lambda: 5, greet=False)
    task = near.spawn(near.index())
    near.flush()
    far.deliver()  # the hello
    far.deliver("call")
    wire.run()
    assert task.result() == 5


def test_without_a_common_version_both_sides_say_what_the_other_offered(wire: Wire) -> None:
    """T4"""
    near, far = wire.link(
        far_hello=Hello(versions=[7, 8], session_id=b"far"), greet=False, names=("near", "far")
    )
    task = near.spawn(near.index.f())
    wire.run()
    assert "[7, 8]" in str(near.session.error)
    assert str(list(VERSIONS)) in str(near.session.error)
    assert isinstance(near.session.error, RemoteProtocolError)
    assert isinstance(far.session.error, LocalProtocolError)
    assert "[7, 8]" in str(far.session.error)
    with pytest.raises(ProtocolError):
        task.result()


def test_versions_and_features_of_the_future_do_not_matter(wire: Wire) -> None:
    """T7: what is not offered by both is not used."""
    hello = Hello(versions=[*VERSIONS, 99], features=["telepathy"], session_id=b"future")
    near, far = wire.link(far_index=lambda: 1, far_hello=hello)
    assert near.get(near.index()) == 1
    assert far.session.error is None


def test_an_echo_of_our_own_bytes_is_no_peer(wire: Wire) -> None:
    """F11: a terminal, or cat."""
    near, _far = wire.link(greet=False)
    task = near.spawn(near.index.f())
    hello = near.other.inbox[0].data
    near.feed(hello)
    assert "echo" in str(near.session.error)
    with pytest.raises(ProtocolError):
        task.result()


@pytest.mark.parametrize("limits", [{"max_frame": 0, "max_depth": 1}, {"max_frame": 1.5}, 5, {}])
def test_a_hello_that_cannot_be_read_ends_the_session(wire: Wire, limits: Any) -> None:
    """F11"""
    near, _far = wire.link(greet=False)
    content = cbor2.dumps(
        {
            "versions": [1],
            "features": [],
            "limits": limits,
            "session": b"",
            "secret": b"",
            "application": "",
            "application_versions": [],
        }
    )
    near.feed(b"\xd9\xd9\xf7" + frame_head(len(content)) + content)
    assert "hello" in str(near.session.error)
    assert near.words() == ["abort"]


# What no correct peer sends.


class Victim:
    """A side with something of each kind in its tables, and a peer that will misbehave.

    near: question 1 is pending; its export -1 was sent twice, the promise -2 once. far: question 1
    is pending, question 2 was answered and released; its export -1 was sent once to near.
    """

    def __init__(self, wire: Wire) -> None:
        fence = Fence()

        async def wait(*_values: Any) -> None:
            await fence.wait()

        class Index(Target):
            def now(self, *_values: Any) -> None: ...

        Index.wait = staticmethod(wait)  # type: ignore[attr-defined]
        index = Index()
        near, far = wire.link(index, index)
        third, _fourth = wire.link(far_index=index, names=("third", "fourth"))
        self.near, self.far, self.third = near, far, third
        self.promise = third.index.wait()
        self.tasks = [
            near.spawn(near.index.wait(print, [print], self.promise)),
            far.spawn(far.index.wait(len)),
        ]
        far.get(far.index.now())
        wire.run()
        assert sorted(near.session.imports.entries) == [-1, 0, 1]
        assert sorted(near.session.exports.entries) == [-2, -1, 0, 1]

    def check(self, messages: bytes, name: str) -> str:
        """Feed it, and see it end as it must; what was said."""
        near, far = self.near, self.far
        near.feed(messages)
        error = near.session.error
        assert isinstance(error, RemoteProtocolError), error
        assert name in str(error)
        assert near.sent[-1].word == "abort"
        assert near.sent[-1].fields == ["RemoteProtocolError", str(error)]
        near.wire.run()
        assert isinstance(far.session.error, LocalProtocolError)
        assert str(error) in str(far.session.error)
        with pytest.raises(RemoteProtocolError):
            self.tasks[0].result()
        with pytest.raises(LocalProtocolError):
            self.tasks[1].result()
        with pytest.raises(RemoteProtocolError):
            near.get(near.index.now())
        assert len(near.session.exports) == len(near.session.imports) == 0
        self.third.hang_up()
        return str(error)


@pytest.fixture
def victim(wire: Wire) -> Victim:
    return Victim(wire)


UNKNOWN_WORDS = [[99], [0], [-1], ["call", 0, [], []], [], [None], [[1]], 5, None, "text", {}]


@pytest.mark.parametrize("message", UNKNOWN_WORDS, ids=str)
def test_an_unknown_word_ends_the_session(victim: Victim, message: Any) -> None:
    """T7: since ids are counted, there is no going on from one."""
    victim.check(frame(message), "unknown word")


MALFORMED: dict[str, list[Any]] = {
    "call": [
        [CALL],
        [CALL, 0],
        [CALL, 0, [], [], {}, 1],
        [CALL, 0, "name", []],
        [CALL, 0, None, []],
        [CALL, 0, [None], []],
        [CALL, 0, [1.5], []],
        [CALL, 0, [True], []],
        [CALL, 0, [["a"]], []],
        [CALL, 0, [b"now"], []],
        [CALL, 0, ["now"], None],
        [CALL, 0, ["now"], {}],
        [CALL, 0, ["now"], "args"],
        [CALL, 0, ["now"], [], []],
        [CALL, 0, ["now"], [], None],
        [CALL, 0, ["now"], [], {b"x": 2}],
    ],
    "push": [[PUSH], [PUSH, 0, "name", []], [PUSH, 0, [], [], {}, 1]],
    "send": [[SEND], [SEND, 0, "name", []], [SEND, 0, [], [], {}, 1]],
    "pull": [[PULL], [PULL, 1, 1]],
    "resolve": [[RESOLVE], [RESOLVE, 1], [RESOLVE, 1, 2, 3]],
    "reject": [[REJECT], [REJECT, 1], [REJECT, 1, 2, 3]],
    "release": [
        [RELEASE],
        [RELEASE, []],
        [RELEASE, [], [], []],
        [RELEASE, 1, []],
        [RELEASE, [], 1],
        [RELEASE, [], [1]],
        [RELEASE, [], [[-1]]],
        [RELEASE, [], [[-1, 1, 1]]],
        [RELEASE, [], [[-1, "1"]]],
        [RELEASE, [], [[-1, 1.0]]],
        [RELEASE, [], [[-1, True]]],
        [RELEASE, [], [["-1", 1]]],
        [RELEASE, ["1"], []],
        [RELEASE, [True], []],
        [RELEASE, {}, []],
    ],
    "cancel": [[CANCEL], [CANCEL, 1, 1]],
    "ping": [[PING], [PING, "1"], [PING, None], [PING, 1, 0, 0]],
    "pong": [[PONG], [PONG, 1, 2]],
    "bye": [[BYE, 1]],
    "abort": [[ABORT], [ABORT, "name"], [ABORT, "name", "text", 1]],
}


@pytest.mark.parametrize(
    ("word", "message"),
    [(word, message) for word, messages in MALFORMED.items() for message in messages],
    ids=str,
)
def test_a_malformed_message_ends_the_session_and_is_named(
    victim: Victim, word: str, message: Any
) -> None:
    """T4"""
    victim.check(frame(message), word)


IMPOSSIBLE: list[tuple[str, list[Any]]] = [
    # Targets and ids that were never issued, or not to the sender.
    ("9", [CALL, 9, ["now"], []]),
    ("-9", [CALL, -9, ["now"], []]),
    ("id 2", [CALL, 2, ["now"], []]),  # answered, and released
    ("0.0", [CALL, 0.0, ["now"], []]),
    ("None", [CALL, None, ["now"], []]),
    ("True", [CALL, True, ["now"], []]),
    ("9", [PUSH, 9, ["now"], []]),
    ("9", [SEND, 9, ["now"], []]),
    ("9", [CALL, 9, []]),
    ("pull", [PULL, 0]),
    ("pull", [PULL, -1]),
    ("id 2", [PULL, 2]),
    ("9", [PULL, 9]),
    ("'1'", [PULL, "1"]),
    ("cancel", [CANCEL, 0]),
    ("cancel", [CANCEL, -1]),
    ("id 2", [CANCEL, 2]),
    ("9", [CANCEL, 9]),
    ("9", [PING, 1, 9]),
    ("-9", [PING, 1, -9]),
    ("None", [PING, 1, None]),
    # Outcomes of what was never asked, of what is no promise, and second ones.
    ("9", [RESOLVE, 9, None]),
    ("0", [RESOLVE, 0, None]),
    ("-9", [RESOLVE, -9, None]),
    ("-1", [RESOLVE, -1, None]),  # an object
    ("'1'", [RESOLVE, "1", None]),
    ("True", [RESOLVE, True, None]),
    ("9", [REJECT, 9, None]),
    ("-9", [REJECT, -9, None]),
    # Releases.
    ("0", [RELEASE, [0], []]),
    ("9", [RELEASE, [9], []]),
    ("2", [RELEASE, [2], []]),
    ("-1", [RELEASE, [-1], []]),
    ("1", [RELEASE, [1, 1], []]),
    ("1", [RELEASE, [], [[1, 1]]]),
    ("0", [RELEASE, [], [[0, 1]]]),
    ("-9", [RELEASE, [], [[-9, 1]]]),
    ("-1", [RELEASE, [], [[-1, 0]]]),
    ("-1", [RELEASE, [], [[-1, -1]]]),
    ("-1", [RELEASE, [], [[-1, 3]]]),
    ("-1", [RELEASE, [], [[-1, 2], [-1, 1]]]),
    ("-1", [RELEASE, [], [[-1, 1 << 70]]]),
    # Pongs.
    ("pong", [PONG, 7]),
    ("pong", [PONG, "1"]),
    # References.
    ("-3", [CALL, 0, ["now"], [ref(0, -3)]]),  # -2 comes first
    ("5", [CALL, 0, ["now"], [ref(0, 5)]]),
    ("5", [CALL, 0, ["now"], [ref(1, 5)]]),
    ("0", [CALL, 0, ["now"], [ref(1, 0)]]),
    ("-1", [CALL, 0, ["now"], [ref(1, -1)]]),  # an object, which comes as a promise
    ("-9", [CALL, 0, ["now"], [ref(2, -9)]]),
    ("9", [CALL, 0, ["now"], [ref(2, 9)]]),
    ("2", [CALL, 0, ["now"], [{"deep": [ref(2, 2, ["a"])]}]]),
    ("9", [RESOLVE, 1, ref(2, 9)]),
    ("-3", [RESOLVE, 1, [ref(0, -3)]]),
]


@pytest.mark.parametrize(("name", "message"), IMPOSSIBLE, ids=str)
def test_an_impossible_id_or_count_ends_the_session_and_is_named(
    victim: Victim, name: str, message: Any
) -> None:
    """T4, K9, E15"""
    victim.check(frame(message), name)


@pytest.mark.parametrize("id", [0, -1])
def test_an_object_breaks_once(victim: Victim, id: int) -> None:
    """T4: a reject of an object, whatever stands for the error; the second ends the session."""
    victim.near.feed(frame([REJECT, id, None]))
    assert victim.near.session.error is None
    victim.check(frame([REJECT, id, None]), f"id {id}")


def test_a_second_outcome_ends_the_session(victim: Victim) -> None:
    """T4: also while the first one is held behind its ping, or waits for a promise inside."""
    victim.check(
        frame([RESOLVE, 1, ref(1, -2)], [RESOLVE, 1, 5]),
        "1",
    )


def test_a_call_after_bye_ends_the_session(victim: Victim) -> None:
    """D5"""
    victim.check(frame([BYE], [CALL, 0, ["now"], []]), "bye")


def test_an_outcome_for_a_released_question_is_moot(wire: Wire) -> None:
    """T5"""
    near, _far = wire.link(far_index=lambda: 1)
    near.get(near.index())
    wire.run()
    near.feed(frame([RESOLVE, 1, 5]))
    near.feed(frame([REJECT, 1, 5]))
    assert near.get(near.index()) == 1


def test_messages_before_the_bad_one_were_handled(wire: Wire) -> None:
    """T4: strictly one by one; those behind it were not."""
    seen: list[int] = []
    near, far = wire.link({"note": seen.append})
    near.feed(
        frame(
            [SEND, 0, ["note"], [1]],
            [SEND, 0, ["note"], [2]],
            [99],
            [SEND, 0, ["note"], [3]],
        )
    )
    near.feed(frame([SEND, 0, ["note"], [4]]))
    assert seen == [1, 2]
    wire.run()
    assert far.session.error is not None


def test_a_reject_without_an_exception_rejects_that_call_alone(wire: Wire) -> None:
    """C2"""
    near, far = wire.link(far_index=lambda: None)
    far.holding = True
    task = near.spawn(near.index())
    wire.run()
    far.held.clear()
    near.feed(frame([REJECT, 1, "text"]))
    with pytest.raises(RemoteProtocolError, match="exception"):
        task.result()
    assert near.session.error is None
    near.hang_up()


def test_an_abort_of_the_other_side_says_that_it_is_our_fault(wire: Wire) -> None:
    """T4"""
    near, _far = wire.link(far_index=lambda: None)
    task = near.spawn(near.index())
    near.feed(frame([ABORT, "RemoteProtocolError", "you are wrong"]))
    assert isinstance(near.session.error, LocalProtocolError)
    with pytest.raises(LocalProtocolError, match="you are wrong"):
        task.result()
    assert near.counts()["abort"] == 0


def test_an_abort_for_its_own_fault_is_the_loss_of_the_peer(wire: Wire) -> None:
    """T4: it does not blame us."""
    near, _far = wire.link(far_index=lambda: None)
    task = near.spawn(near.index())
    near.feed(frame([ABORT, "LocalProtocolError", "a bug of mine"]))
    with pytest.raises(PeerLost, match="a bug of mine"):
        task.result()


def test_an_abort_with_strange_fields_is_an_abort(wire: Wire) -> None:
    """T4"""
    near, _far = wire.link()
    near.feed(frame([ABORT, 5, None]))
    assert "5: None" in str(near.session.error)
    assert near.counts()["abort"] == 0


# Bytes.


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x00", "0x00"),
        (b"\xff" * 8, "0xff"),
        (b"\x5f\x41\x00\xff", "indefinite"),
        (b"\x82\x01\x41\x00", "chunk"),
        (b"\xd9\xd9\xf7\x41\x80", "0xd9"),
        (b"\x5b" + b"\xff" * 8, "max_frame"),
        (b"\x5a\xff\xff\xff\xff", "max_frame"),
        (b"hello\n", "0x68"),
        (frame_head(1) + b"\x05", "int"),
        (frame_head(1) + b"\xa0", "dict"),
        (frame_head(2) + b"\x82\x01", "not valid"),
        (frame_head(0), "not valid"),
        (frame_head(2) + b"\x80\x00", "frame"),  # something behind the array
        (frame_head(4) + b"\x9f\x80\xff\x00", "not valid"),  # indefinite length
        (frame_head(3) + b"\x81\x61\xff", "not valid"),  # no UTF-8
        (frame_head(200) + b"\x81" * 199 + b"\x80", "not valid"),  # deeper than any limit
        (frame_head(6) + b"\x81\xa1\x01\x02\x00\x00", "not valid"),  # a key that is no text
        (frame_head(8) + b"\x81\xa2\x61a\x01\x61a\x01", "not valid"),  # a key twice
    ],
    ids=lambda value: value.hex()[:16] if isinstance(value, bytes) else value,
)
def test_bytes_that_are_no_frame_end_the_session(victim: Victim, data: bytes, name: str) -> None:
    """F10, F11: an oversize head before anything is allocated for it."""
    victim.check(data, name)


def test_the_end_of_the_stream_is_no_protocol_error(wire: Wire) -> None:
    """D1"""
    near, _far = wire.link(far_index=lambda: 1)
    task = near.spawn(near.index())
    near.feed(b"")
    wire.run()
    with pytest.raises(PeerLost, match="closed the connection"):
        task.result()


@pytest.mark.parametrize("chop", [1, 2, 3, 7, 64])
def test_frames_cut_anywhere_are_the_same_frames(chop: int) -> None:
    """F11, H6: byte by byte, and in pieces that end in the midst of a head."""
    wire = Wire(chop=chop)
    near, _far = wire.link(far_index=script_index())
    play_script(near)
    wire.check_quiet()


def test_many_frames_in_one_piece_are_the_same_frames(wire: Wire) -> None:
    """F11"""
    near, far = wire.link(far_index=script_index())
    tasks = []
    for n in (0, 1, 22, 23, 24, 255, 256, 65_535, 65_536, 100_000):
        tasks.append((n, near.spawn(near.index.echo(bytes(n)))))
        near.flush()
    data = b"".join(frame.data for frame in far.inbox)
    far.inbox.clear()
    cut = len(data) // 2
    far.feed(data[:cut])
    far.feed(data[cut:])
    wire.run()
    assert all(len(task.result()) == n for n, task in tasks)


def script_index() -> dict[str, Any]:
    async def twice(f: Any, x: Any) -> Any:
        return await f(await f(x))

    return {"echo": lambda x: x, "twice": twice, "fail": lambda: 1 / 0}


def play_script(near: FakeDriver) -> None:
    """Something of everything."""
    assert near.get(near.index.twice(lambda x: x + 1, 1)) == 3
    assert near.get(near.index.echo("text" * 100)) == "text" * 100
    assert near.get(near.index.echo([print])) == [print]
    with pytest.raises(ZeroDivisionError) as raised:
        near.get(near.index.fail())
    assert isinstance(raised.value, RemoteError)
    assert near.get(near.index.echo({"a": near.index.echo(1)})) == {"a": 1}
