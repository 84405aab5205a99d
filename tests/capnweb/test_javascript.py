"""The types that stand for what only JavaScript has."""

from __future__ import annotations

import copy
import pickle

import pytest

import capnode_py as capnode


def test_undefined_is_one_false_and_no_none():
    undefined = capnode.undefined
    assert not undefined
    assert undefined is not None
    assert type(undefined)() is undefined
    assert repr(undefined) == "undefined"
    assert copy.deepcopy(undefined) is undefined
    assert pickle.loads(pickle.dumps(undefined)) is undefined


def test_a_bigint_is_an_int_and_bytes_are_bytes():
    assert capnode.BigInt(5) == 5
    assert repr(capnode.BigInt(5)) == "BigInt(5)"
    assert (str(capnode.BigInt(5)), f"{capnode.BigInt(-5)}") == ("5", "-5")
    assert repr(capnode.BigInt(16**5000)) == f"BigInt(0x1{'0' * 5000})"
    data = capnode.Bytes(b"ab", "DataView")
    assert (data, data.container, repr(data)) == (b"ab", "DataView", "Bytes(b'ab', 'DataView')")
    with pytest.raises(ValueError, match=r"array\('h'"):
        capnode.Bytes(b"ab", "Int16Array")


URLS = (
    "https://example.org/",
    "http://a..b/",
    "http://user:secret@localhost:8080/a%20b?c=d#e",
    "ws://[::1]:80/",
    "http://127.0.0.1/",
    "http://xn--bcher-kva.example/",
    "http://b\u00fccher.example/",
    "file:///etc/passwd",
    "data:text/plain,hello",
    "blob:https://example.org/1",
    "mailto:a@b",
)
NO_URLS = (
    "",
    "nowhere",
    "/path",
    "//host/",
    "http://",
    "http://a b/",
    "http://a:99999/",
    "http://a:x/",
    "http://[::1/",
    "http://1.2.3.256/",
    "http://a.0x1/",
    "http://a<b/",
    "http://xn--\xff/",
    "1http://a/",
)


def test_a_url_is_what_javascript_takes_as_one():
    for text in URLS:
        assert capnode.URL(text) == text
    for text in NO_URLS:
        with pytest.raises(ValueError, match="not an absolute url"):
            capnode.URL(text)


def test_headers_are_a_mapping_that_knows_no_case():
    headers = capnode.Headers([("Accept", "a"), ("X-One", " 1 "), ("x-one", "2")])
    assert dict(headers) == {"accept": "a", "x-one": "1, 2"}
    assert (headers["ACCEPT"], len(headers), "x-ONE" in headers) == ("a", 2, True)
    assert headers.pairs == (("accept", "a"), ("x-one", "1"), ("x-one", "2"))
    assert capnode.Headers({"A": "b"}) == capnode.Headers([("a", "b")])
    many = capnode.Headers((f"n{i}", "v") for i in range(20_000))  # at once, for each name
    assert dict(many) == {f"n{i}": "v" for i in range(20_000)}
    with pytest.raises(KeyError):
        headers["nope"]
    for pairs in ([("a b", "c")], [("a", "b\r\nc: d")], [("a", "\u2603")], [("", "")]):
        with pytest.raises(ValueError, match="of a header"):
            capnode.Headers(pairs)


def test_the_native_dialect_takes_them_as_what_they_are_and_has_no_undefined(web):
    from capnode_py.testing import Wire

    wire = Wire()
    near, _ = wire.link(far_index={"echo": lambda value: value})
    values = [capnode.BigInt(5), capnode.URL("http://a/"), capnode.Bytes(b"a")]
    assert near.get(near.index.echo(values)) == [5, "http://a/", b"a"]
    with pytest.raises(capnode.CannotPass, match="only JavaScript has it; write None"):
        near.index.echo(capnode.undefined)
