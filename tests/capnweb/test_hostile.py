"""What a stranger may send: one call fails, or the session; memory and time are bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._errors import RemoteProtocolError
from capnode_py.codec import capnweb_json, capnweb_reader
from capnode_py.codec.capnweb import CapnwebCodec
from capnode_py.testing import Wire

from .conftest import FencedApi, Raw


def _echo(expression: Any, id: int = 1) -> list[Any]:
    return [["push", ["pipeline", 0, ["echo"], [expression]]], ["pull", id]]


def _answers(raw: Raw, *messages: Any) -> list[Any]:
    return [answer for message in messages for answer in raw.send(message)]


REJECTED: dict[str, Any] = {
    "deep objects": json.loads('{"a":' * 100 + "1" + "}" * 100),
    "deep arrays": json.loads("[[" * 100 + "1" + "]]" * 100),
    "deep calls": json.loads('["pipeline",0,["echo"],[' * 100 + "1" + "]]" * 100),
    "a bigint bomb": ["bigint", "9" * 1_000_000],
    "a bigint of other digits": ["bigint", "\u0661\u0662"],
    "base64 of other letters": ["bytes", "\u0661\u0662"],
    "base64 of half a byte": ["bytes", "A"],
    "a container that is a list": ["bytes", "AQI", []],
    "a date of infinity": ["date", float("1e400")],
    "a date of true": ["date", True],
    "an error with a list of properties": ["error", "E", "t", None, [1]],
    "headers of one": ["headers", [["a"]]],
    "headers of numbers": ["headers", [[1, 2]]],
    "a url of a list": ["url", ["http://a/"]],
    "a url to no port": ["url", "http://a:99999/"],
    "a request": ["request", "https://example.org/", {"method": "POST"}],
    "a response": ["response", None, {}],
    "a blob": ["blob", "text/plain", ["readable", 7]],
    "a tag that is a number": [1, 2],
    "a tag that is an object": [{}, 2],
    "a path of true": ["pipeline", 0, [True]],
    "too much of an import": ["import", 0, [], [], 5],
    "an import of a text": ["import", "0"],
    "an import of true": ["import", True],
    "a remap of nothing": ["remap", 0],
}


@pytest.mark.parametrize("what", REJECTED)
def test_a_value_that_cannot_be_read_rejects_its_call_and_no_other(raw, what):
    text = json.dumps(_echo(REJECTED[what])[0]).replace("Infinity", "1e400")
    (answer,) = _answers(raw, text, ["pull", 1], ["release", 1, 1])
    assert answer[:2] == ["reject", 1]
    assert len(json.dumps(answer)) < 1000
    assert _answers(raw, *_echo("still here", 2)) == [["resolve", 2, "still here"]]
    # So is a result, which is decoded by who has called.
    near = raw.side
    promise = near.index.anything()
    raw.said()
    raw.send(json.dumps(["resolve", 1, REJECTED[what]]).replace("Infinity", "1e400"))
    with pytest.raises(capnode.CapnodeError):
        near.get(promise)
    assert near.session.error is None


def test_what_cannot_be_read_of_an_exception_is_left_out(raw):
    deep = json.loads('["error","E","t",null,{"cause":' * 100 + "null" + "}]" * 100)
    odd = ["error", "E", "t", None, {"py_type": [1], "a": ["frob"], "b": [[1]], "__proto__": 1}]
    (answer,) = _answers(raw, *_echo(deep))
    assert answer[2][:3] == ["error", "E", "t"]
    (answer,) = _answers(raw, *_echo(odd, 2))
    assert answer == [
        "resolve",
        2,
        ["error", "E", "t", None, {"py_type": "E", "py_base": None, "b": [[1]]}],
    ]


def test_what_is_written_as_hex_in_words_may_be_of_any_size(raw):
    """Python refuses to write more than some thousand digits in decimals."""
    many = ["bigint", "9" * 16_000]
    (answer,) = _answers(raw, *_echo(["error", "E", "t", None, {"py_type": many}]))
    assert answer[:2] == ["reject", 1]
    assert "BigInt(0x" in answer[2][2] or "malformed error" in answer[2][2]
    (answer,) = _answers(raw, ["push", ["pipeline", 0, ["fail"], [many, "t"]]], ["pull", 2])
    assert answer[2][:2] == ["error", "KeyError"]
    assert answer[2][2].startswith("BigInt(0x")
    near = raw.side
    promise = near.index.anything()
    raw.said()
    raw.send(["reject", 1, many])
    with pytest.raises(capnode.RemoteError, match=r"thrown: BigInt\(0x"):
        near.get(promise)
    assert near.session.error is None
    raw.send(["abort", many])
    assert "thrown: BigInt(0x" in str(near.session.error)


def test_errors_in_errors_are_looked_through_once(monkeypatch):
    looked: list[Any] = []
    look = capnweb_reader._references

    def references(form: Any) -> list[Any]:
        looked.append(form)
        return look(form)

    monkeypatch.setattr(capnweb_reader, "_references", references)
    form: Any = [[1]]
    for _ in range(30):
        form = ["error", "E", "t", None, {"cause": form}]
    message = json.dumps(_echo(form)[0]).encode()
    ((_, _, _, (error,)),), _ = CapnwebCodec(Limits()).decode(message)
    assert isinstance(error, capnode.RemoteError)
    assert len(looked) == 1


def test_the_depth_of_a_text_that_does_not_end_is_found_in_one_walk():
    line = b"[" * 401 + b'"' + b'\\"' * 100_000
    assert capnweb_json._STRINGS.sub(b"", line) == b"[" * 401
    assert capnweb_json._STRINGS.sub(b"", b'["[",{"\\"[":1},"\\\\",[]]') == b"[,{:1},,[]]"
    assert capnweb_json.levels(line) == 401


ENDING: dict[str, str | bytes] = {
    "no array": "{}",
    "a number": "5",
    "NaN": '["push",NaN]',
    "half a line": '["push"',
    "a control character": '["push","\x01"]',
    "no UTF-8": b'["push","\xff"]',
    "a deep bomb": "[" * 200_000,
    "a deep bomb of objects": '{"a":' * 200_000,
    "a deep bomb in a text is none, but this is no word": json.dumps(["[" * 200_000]),
    "a text that does not end": "[" * 401 + '"' + '\\"' * 100_000,
    "an int of too many digits": f'["push",{"9" * 10_000}]',
    "a pull of a float": '["pull",1.0]',
    "a pull of true": '["pull",true]',
    "a release of true": '["release",true,1]',
    "a release of a million": '["release",-1,1000000]',
    "a resolve of a text": '["resolve","1",1]',
    "an export that is ours to choose": '["push",["pipeline",0,["echo"],[["export",1]]]]',
    "a promise that is the index": '["push",["pipeline",0,["echo"],[["promise",0]]]]',
}


@pytest.mark.parametrize("what", ENDING)
def test_what_leaves_no_way_on_ends_the_session_with_words(raw, what):
    line = ENDING[what]
    raw.side.feed((line if isinstance(line, bytes) else line.encode()) + b"\n")
    error = raw.side.session.error
    assert isinstance(error, RemoteProtocolError)
    assert len(str(error)) < 400
    (answer,) = raw.said()
    assert answer[0] == "abort"
    assert len(json.dumps(answer)) < 1200


def test_a_line_over_the_limit_ends_the_session_before_it_is_whole():
    codec = CapnwebCodec(Limits(max_frame=1000))
    assert list(codec.feed(b'["push","' + b"x" * 900)) == []
    with pytest.raises(RemoteProtocolError, match=r"over the limit of 1000 bytes"):
        codec.feed(b"x" * 200)
    codec = CapnwebCodec(Limits(max_frame=1000))
    with pytest.raises(RemoteProtocolError, match=r"Limits\.max_frame"):
        codec.feed(b'["push","' + b"x" * 1000 + b'"]\n')


@pytest.mark.parametrize("first", [b"hello", b"{", b"GET / HTTP/1.1"])
def test_who_speaks_something_else_is_known_by_the_first_byte(first):
    with pytest.raises(RemoteProtocolError, match="does not speak Cap'n Web"):
        CapnwebCodec(Limits()).feed(first)


def test_two_dialects_know_each_other(web):
    near, _ = web.link()
    native, _ = Wire().link(greet=False)
    (hello,) = native.other.inbox
    near.feed(hello.data)
    assert "speaks the native dialect: leave dialect= out here" in str(near.session.error)
    native.feed(b'["push",["pipeline",0,["f"],[]]]\n')
    assert 'speaks another dialect: give dialect="capnweb" here' in str(native.session.error)


def test_logs_of_a_child_need_a_dialect_that_can():
    with pytest.raises(ValueError, match="logs= needs cap_ids"):
        _ = capnode.spawn(["node"], dialect="capnweb", logs=True)


def test_references_beside_what_cannot_be_read_are_counted_and_given_back(raw):
    for n, expression in enumerate(
        [
            ["frob", ["export", -1]],
            {"a": ["date", "x"], "b": ["export", -2]},
            [[["export", -3], ["promise", -4], ["frob"]]],
            ["error", "E", "t", None, {"a": ["export", -5]}],
            ["pipeline", 0, ["echo"], [["export", -6], ["frob"]]],
            ["request", "http://a/", {"body": ["writable", -7]}],
            {"toString": ["export", -8]},
            ["unknown", [[["export", -9]]], {"a": ["unknown", ["export", -10]]}],
        ],
        start=1,
    ):
        answers = _answers(raw, *_echo(expression, n), ["release", n, 1])
        assert ["reject", n] in [answer[:2] for answer in answers]
        released = {id for word, id, *_ in answers if word == "release"}
        expected = {-i for i in range(1, 11) if f'"export", -{i}]' in json.dumps(expression)}
        expected |= {-i for i in (4, 7) if f", -{i}]" in json.dumps(expression)}
        assert released == expected
    assert (len(raw.side.session.imports), len(raw.side.session.exports)) == (1, 1)


def test_a_call_in_a_value_that_cannot_be_read_is_not_made(raw):
    inner = ["pipeline", 0, ["log"], ["made"]]
    answers = _answers(raw, *_echo([[inner, ["frob"]]]))
    assert [answer[:2] for answer in answers] == [["reject", 1]]
    answers = _answers(raw, ["push", ["pipeline", 0, ["logged"], []]], ["pull", 2])
    assert answers == [["resolve", 2, [[]]]]


def test_a_text_that_looks_like_a_reference_is_a_text(raw):
    value = [["export", -1], ["import", 0], ["promise", -5]]
    encoded = [[[[item] for item in value]]]
    sent = [[[value[0]], [value[1]], [value[2]]]]
    del encoded
    (answer,) = _answers(raw, *_echo(sent))
    assert answer == ["resolve", 1, sent]


def test_keys_that_javascript_drops_are_dropped_and_never_sent(raw):
    value = {"__proto__": {"admin": True}, "constructor": 1, "toJSON": 2, "kept": 3}
    assert _answers(raw, *_echo(value))[0] == ["resolve", 1, {"kept": 3}]
    with pytest.raises(capnode.CannotPass, match=r"at \['a'\]\['__proto__'\]"):
        raw.side.index.echo({"a": {"__proto__": 1}})


def test_a_peer_that_never_releases_is_ended():
    wire = Wire(dialect="capnweb")
    _, far = wire.link(far_index=FencedApi(), far_limits=Limits(max_exports=10))
    raw = Raw(wire, far)
    for _ in range(12):
        raw.send(["push", ["pipeline", 0, ["square"], [2]]])
    assert "Limits.max_exports" in str(far.session.error)


def test_a_message_of_ours_is_as_long_as_any_peer_takes():
    wire = Wire(dialect="capnweb")
    near, _ = wire.link(far_index=FencedApi())
    with pytest.raises(capnode.LimitExceeded, match="at most 33554432"):
        near.index.echo("x" * (32 * 1024 * 1024))
    assert near.get(near.index.square(3)) == 9


def test_bytes_one_by_one(web):
    web.chop = 1
    near, _ = web.link(far_index=FencedApi())
    assert near.get(near.index.echo(["text \N{SNOWMAN}", {"a": b"bytes"}])) == [
        "text \N{SNOWMAN}",
        {"a": b"bytes"},
    ]
    del near


def test_blank_lines_and_line_ends_of_windows_are_no_messages(raw):
    raw.side.feed(b'\n\r\n["push",["pipeline",0,["square"],[3]]]\r\n  ["pull",1]  \n\n')
    assert raw.said() == [["resolve", 1, 9]]


def test_a_stream_that_ends_in_mid_line_says_so(raw):
    raw.side.feed(b'["push",')
    raw.side.feed(b"")
    assert "in the middle of a line" in str(raw.side.session.error)


def test_an_abort_while_we_leave_is_how_they_say_that_they_have_heard(raw):
    raw.side.session.say_bye()
    assert raw.send(["abort", ["error", "Error", "the stream has ended"]]) == []
    assert raw.side.session.error is None


def test_an_abort_of_theirs_is_told(raw):
    promise = raw.side.index.anything()
    raw.said()
    raw.send(["abort", ["error", "TypeError", "no such thing"]])
    with pytest.raises(capnode.LocalProtocolError, match="TypeError: no such thing"):
        raw.side.get(promise)
    assert raw.said() == []
