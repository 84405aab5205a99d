"""cap_ids on the wire: what is sent, what is pinned, what a guess is told. And `_released`."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import cbor2
import pytest

import capnode_py as capnode
from capnode_py import Capnode, MethodRegistry, Released, RemoteError, Stub, Target
from capnode_py._cap_ids import CONNECTION, CapId, of_export, parse
from capnode_py._frames import frame_head
from capnode_py._holders import holders
from capnode_py.codec.cbor_writer import TAG_REF
from capnode_py.testing import Fence, Wire

SECRET = b"a secret of sixteen bytes or more"


class Account(Target):
    def __init__(self, balance: int = 0) -> None:
        self._balance = balance

    def balance(self) -> int:
        return self._balance

    def put(self, amount: int) -> int:
        self._balance += amount
        return self._balance

    def itself(self) -> Account:
        return self


class Bank(Target):
    def __init__(self) -> None:
        self.account_ = Account()
        self.kept_: list[Any] = []

    def open(self) -> Account:
        return self.account_

    def keep(self, *values: Any) -> None:
        self.kept_ += values


def two_clients(wire: Wire, bank: Bank, registry: MethodRegistry | None = None) -> Any:
    """Two connections to one host: the near side of each, and their far sides."""
    host = Capnode(bank, registry=registry)
    one, far_one = wire.link(far_index=host, names=("one", "host a"))
    two, far_two = wire.link(far_index=host, names=("two", "host b"))
    return one, two, far_one, far_two


def test_a_cap_id_costs_no_message_until_it_is_used(wire: Wire) -> None:
    one, two, *_ = two_clients(wire, Bank())
    account = one.get(one.index.open())
    before = len(one.sent)
    cap_id = account.cap_id
    assert account.cap_id == cap_id
    wire.run()
    assert one.sent[before:] == [] or {m.word for m in one.sent[before:]} == {"release"}

    stub = two.peer.reconstruct(str(cap_id))
    promise = stub.put(5)
    two.flush()
    assert [message.word for message in two.sent] == ["push", "call"]
    assert two.get(promise) == 5
    assert one.get(account.balance()) == 5


def test_it_is_shown_by_str_and_not_by_repr(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    near, _ = wire.link(far_index=Bank())
    cap_id = near.get(near.index.open()).cap_id
    secret_part = cap_id[-20:]
    assert secret_part in str(cap_id)
    assert secret_part not in repr(cap_id)
    assert secret_part not in repr({"it": cap_id})
    with caplog.at_level(logging.DEBUG):
        stub = near.peer.reconstruct(cap_id + "x")
        with pytest.raises(LookupError) as caught:
            near.get(stub.balance())
    assert secret_part not in caplog.text
    assert secret_part not in str(caught.value)
    assert secret_part not in repr(stub)


def test_it_names_a_place_and_proves_by_128_bits_that_it_was_given() -> None:
    parts = parse(of_export(b"s" * 16, b"secret", -300))
    assert (parts.kind, parts.place, parts.id) == (CONNECTION, b"s" * 16, -300)
    assert len(parts.proof) * 8 >= 128
    assert parts.proof != parse(of_export(b"s" * 16, b"secret", -301)).proof
    assert parts.proof != parse(of_export(b"s" * 16, b"Secret", -300)).proof
    assert parts.proof != parse(of_export(b"t" * 16, b"secret", -300)).proof


def test_on_the_connection_that_holds_it_it_is_the_very_stub(wire: Wire) -> None:
    """I2: by reference and by cap_id, one stub; no message is needed."""
    near, _ = wire.link(far_index=Bank())
    account = near.get(near.index.open())
    before = len(near.sent)
    assert near.peer.reconstruct(account.cap_id) is account
    assert near.peer.reconstruct(near.index.cap_id) is near.index
    near.flush()
    assert {message.word for message in near.sent[before:]} <= {"release"}


def test_the_same_cap_id_gives_the_same_stub(wire: Wire) -> None:
    one, two, *_ = two_clients(wire, Bank())
    account = one.get(one.index.open())
    cap_id = account.cap_id
    first = two.peer.reconstruct(cap_id)
    assert two.peer.reconstruct(str(cap_id)) is first
    assert first.cap_id == cap_id
    assert two.get(first.balance()) == 0


def test_it_pins_nothing_and_dies_with_its_export(wire: Wire) -> None:
    bank = Bank()
    one, two, *_ = two_clients(wire, bank)
    account = one.get(one.index.open())
    cap_id = account.cap_id
    seen = weakref.ref(bank.account_)
    del account
    wire.run()
    bank.account_ = Account(1)
    gc.collect()
    assert seen() is None
    with pytest.raises(LookupError, match="stands for nothing"):
        two.get(two.peer.reconstruct(cap_id).balance())


def test_what_was_reconstructed_outlives_the_connection_of_its_cap_id(wire: Wire) -> None:
    bank = Bank()
    one, two, *_ = two_clients(wire, bank)
    account = one.get(one.index.open())
    cap_id = account.cap_id
    stub = two.peer.reconstruct(cap_id)
    assert two.get(stub.put(3)) == 3
    one.hang_up()
    del account
    wire.run()
    assert two.get(stub.balance()) == 3
    again = two.peer.reconstruct(str(cap_id))
    assert again is stub
    del stub, again
    gc.collect()
    wire.run()
    with pytest.raises(LookupError):
        two.get(two.peer.reconstruct(cap_id).balance())


@pytest.mark.parametrize("guess", ["unknown", "dead", "foreign", "malformed", "wrong proof"])
def test_no_guess_is_told_why_it_failed(wire: Wire, guess: str) -> None:
    one, two, *_ = two_clients(wire, Bank())
    account = one.get(one.index.open())
    cap_id = account.cap_id
    hello = one.session.remote
    assert hello is not None
    guesses = {
        "unknown": of_export(hello.session_id, hello.secret, -77),
        "dead": cap_id,
        "foreign": of_export(b"x" * 16, b"y" * 16, -1),
        "malformed": "cap.c.%%%",
        "wrong proof": of_export(hello.session_id, b"guessed", account._id),
    }
    if guess == "dead":
        account.dealloc()
        wire.run()
    stub = two.peer.reconstruct(guesses[guess])
    with pytest.raises(RemoteError) as caught:
        two.get(stub.balance())
    assert isinstance(caught.value, LookupError)
    assert str(caught.value) == "this cap_id stands for nothing here, or for nothing any more"
    assert two.get(two.index.open().balance()) == 0  # the other calls go on


@pytest.mark.parametrize(
    "text", ["", "cap", "cap.c", "cap.c.", "cap..", ".", "é.é.é", "cap.q." + "A" * 43]
)
def test_any_text_at_all_is_only_unknown(wire: Wire, text: str) -> None:
    near, _ = wire.link(far_index=Bank())
    with pytest.raises(LookupError):
        near.get(near.peer.reconstruct(text).balance())
    with pytest.raises(LookupError):
        near.get(near.peer.reconstruct("A" * 100_000).balance())


def test_what_is_no_text_is_refused_here(wire: Wire) -> None:
    near, _ = wire.link(far_index=Bank())
    with pytest.raises(TypeError, match=r"write peer\.reconstruct"):
        near.peer.reconstruct(near.index)


def test_a_promise_has_no_cap_id_and_says_what_to_await(wire: Wire) -> None:
    near, _ = wire.link(far_index=Bank())
    promise = near.index.open()
    with pytest.raises(TypeError, match="await it first"):
        _ = promise.cap_id
    with pytest.raises(TypeError, match=r"stub = await promise\.account\[0\]; stub.cap_id"):
        _ = near.index.account[0].cap_id
    near.get(promise)


def test_a_stub_that_was_given_up_has_no_cap_id(wire: Wire) -> None:
    near, _ = wire.link(far_index=Bank())
    account = near.get(near.index.open())
    account.dealloc()
    with pytest.raises(Released):
        _ = account.cap_id


def test_the_end_of_the_connection_ends_its_cap_ids(wire: Wire) -> None:
    one, two, *_ = two_clients(wire, Bank())
    account = one.get(one.index.open())
    cap_id = account.cap_id
    one.hang_up()
    with pytest.raises(capnode.PeerLost):
        _ = account.cap_id
    with pytest.raises(capnode.PeerLost):
        one.peer.reconstruct(cap_id)
    with pytest.raises(LookupError):
        two.get(two.peer.reconstruct(cap_id).balance())


def test_a_reconstructed_stub_goes_home_as_the_object(wire: Wire) -> None:
    """I1: through an argument, and by another client's hands."""
    bank = Bank()
    one, two, *_ = two_clients(wire, bank)
    account = one.get(one.index.open())
    stub = two.peer.reconstruct(account.cap_id)
    two.get(two.index.keep(stub, [stub], {"path": stub.itself}))
    first, second, third = bank.kept_
    assert first is bank.account_
    assert second == [first]
    assert third["path"]() is bank.account_
    bank.kept_.clear()


def test_calls_on_it_are_started_in_order_and_behind_what_was_called_before(wire: Wire) -> None:
    """E: also while the object is read in a task of its own."""
    bank = Bank()
    one, two, _, far_two = two_clients(wire, bank)
    account = one.get(one.index.open())
    far_two.eager = False
    stub = two.peer.reconstruct(account.cap_id)
    promises = [stub.put(1), stub.put(2), stub.put(3)]
    wire.run()
    assert [two.get(promise) for promise in promises] == [1, 3, 6]


def test_dropped_or_given_up_it_lets_go(wire: Wire) -> None:
    bank = Bank()
    one, two, _, far_two = two_clients(wire, bank)
    account = one.get(one.index.open())
    with two.peer.reconstruct(account.cap_id) as stub:
        two.get(stub.balance())
        assert len(far_two.session.exports) == 2
    with pytest.raises(Released):
        stub.balance()
    two.get(two.index.open().balance())
    wire.run()
    assert len(far_two.session.exports) == 1


def test_the_index_has_one_too(wire: Wire) -> None:
    one, two, *_ = two_clients(wire, Bank())
    assert two.get(two.peer.reconstruct(one.index.cap_id).open().put(4)) == 4


# What lasts.


def test_the_same_secret_and_name_give_the_same_cap_id() -> None:
    account = Account()
    first = MethodRegistry(secret=SECRET).register(account, "account")
    assert MethodRegistry(secret=SECRET).register(Account(), "account") == first
    assert MethodRegistry(secret=SECRET).register(account, "Account") != first
    assert MethodRegistry(secret=SECRET + b"!").register(account, "account") != first
    assert MethodRegistry().register(account, "account") != first


def test_a_registered_reference_carries_its_lasting_cap_id(wire: Wire) -> None:
    bank = Bank()
    registry = MethodRegistry(secret=SECRET)
    cap_id = registry.register(bank.account_, "account")
    one, two, *_ = two_clients(wire, bank, registry)
    account = one.get(one.index.open())
    assert account.cap_id == cap_id
    one.hang_up()
    assert account.cap_id == cap_id
    assert two.get(two.peer.reconstruct(cap_id).put(2)) == 2
    registry.unregister("account")


def test_by_reference_and_by_lasting_cap_id_it_is_one_stub(wire: Wire) -> None:
    """I2, in both orders; and both are given up together."""
    bank = Bank()
    registry = MethodRegistry(secret=SECRET)
    cap_id = registry.register(bank.account_, "account")
    one, two, _, far_two = two_clients(wire, bank, registry)
    account = one.get(one.index.open())
    assert one.peer.reconstruct(cap_id) is account

    stub = two.peer.reconstruct(cap_id)
    assert two.get(two.index.open()) is stub
    assert two.get(stub.put(1)) == 1
    stub.dealloc()
    two.get(two.index.keep())
    wire.run()
    assert len(far_two.session.exports) == 1
    anew = two.get(two.index.open())
    assert anew is not stub
    assert two.get(anew.put(1)) == 2


def test_methods_functions_and_stubs_can_be_registered(wire: Wire) -> None:
    registry = MethodRegistry(secret=SECRET)
    one, two, *_ = two_clients(wire, Bank(), registry)
    account = Account(7)
    near, _ = wire.link(far_index=Account(9), names=("three", "its host"))
    ids = [
        registry.register(account.balance, "method"),
        registry.register(lambda: 8, "function"),
        registry.register(near.index, "stub"),
    ]
    assert two.get(two.peer.reconstruct(ids[0])()) == 7
    assert two.get(two.peer.reconstruct(ids[1])()) == 8
    assert two.get(two.peer.reconstruct(ids[2]).balance()) == 9
    assert len(registry) == 3
    for name in ("method", "function", "stub"):
        registry.unregister(name)
    assert len(registry) == 0
    with pytest.raises(LookupError):
        one.get(one.peer.reconstruct(ids[0])())


def test_a_registry_says_what_it_cannot_take() -> None:
    registry = MethodRegistry(secret=SECRET)
    with pytest.raises(TypeError, match="token_bytes"):
        MethodRegistry(secret="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can be guessed"):
        MethodRegistry(secret=b"short")
    with pytest.raises(TypeError, match="list"):
        registry.register([1], "list")
    with pytest.raises(TypeError, match="a name is a str"):
        registry.register(print, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"capnode\.MethodRegistry, not a dict"):
        Capnode(registry={})  # type: ignore[arg-type]
    registry.register(print, "it")
    registry.register(print, "it")
    with pytest.raises(ValueError, match=r"unregister\('it'\) it first"):
        registry.register(len, "it")
    with pytest.raises(KeyError):
        registry.unregister("nothing")
    assert SECRET.decode() not in repr(registry)


def forged(cap_id: str) -> str:
    """The same place, and a proof that is off by one bit."""
    raw = bytearray(urlsafe_b64decode(cap_id[6:] + "=="))
    raw[16] ^= 1
    return cap_id[:6] + urlsafe_b64encode(raw).decode().rstrip("=")


def test_a_lasting_or_shared_cap_id_with_a_wrong_proof_is_unknown(wire: Wire) -> None:
    registry = MethodRegistry(secret=SECRET)
    one, *_ = two_clients(wire, Bank(), registry)
    lasting, shared = registry.register(len, "len"), capnode.share(len)
    for cap_id in (lasting, shared):
        assert one.get(one.peer.reconstruct(cap_id)("four")) == 4
        with pytest.raises(LookupError):
            one.get(one.peer.reconstruct(forged(cap_id))("four"))
    capnode.unshare(forged(shared))
    assert one.get(one.peer.reconstruct(str(shared))("four")) == 4
    capnode.unshare(shared)


def test_a_lasting_cap_id_is_not_known_from_its_place() -> None:
    parts = parse(MethodRegistry(secret=SECRET).register(len, "len"))
    assert parts.place != parts.proof


def test_one_object_may_have_two_names(wire: Wire) -> None:
    registry = MethodRegistry(secret=SECRET)
    first, second = registry.register(print, "one"), registry.register(print, "two")
    assert first != second
    assert registry.find(first) is registry.find(second) is print
    registry.unregister("one")
    assert registry.find(second) is print
    assert registry.register(print, "one") == first


# Shared.


def test_what_is_shared_is_good_on_every_connection_until_it_is_unshared(wire: Wire) -> None:
    one, two, *_ = two_clients(wire, Bank())
    account = Account(1)
    cap_id = capnode.share(account)
    assert capnode.share(account) != cap_id
    stub = one.peer.reconstruct(cap_id)
    assert one.get(stub.balance()) == 1
    assert two.get(two.peer.reconstruct(cap_id).balance()) == 1
    capnode.unshare(cap_id)
    capnode.unshare(cap_id)
    capnode.unshare("cap.s.nonsense")
    with pytest.raises(LookupError):
        two.get(two.peer.reconstruct(cap_id).balance())
    assert one.get(stub.balance()) == 1  # made before: a reference like any other


def test_a_share_expires(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    near, _ = wire.link(far_index=Bank())
    account = Account(1)
    seen = weakref.ref(account)
    cap_id = capnode.share(account, ttl=60)
    del account
    now += 59
    assert near.get(near.peer.reconstruct(cap_id).balance()) == 1
    wire.run()
    now += 2
    with pytest.raises(LookupError):
        near.get(near.peer.reconstruct(cap_id).balance())
    gc.collect()
    assert seen() is None


def test_a_stub_can_be_shared_with_clients_of_this_host(wire: Wire) -> None:
    """A third party, by proxy: the caller of the cap_id never sees the connection behind."""
    behind, _ = wire.link(far_index=Bank(), names=("middle", "behind"))
    near, _ = wire.link(far_index=None, names=("near", "host"))
    account = behind.get(behind.index.open())
    stub = near.peer.reconstruct(capnode.share(account, ttl=60))
    assert near.get(stub.put(2)) == 2
    capnode.unshare(stub.cap_id)


def test_share_says_what_it_cannot_take(wire: Wire) -> None:
    near, _ = wire.link(far_index=Bank())
    promise = near.index.open()
    with pytest.raises(TypeError, match="await the promise first"):
        capnode.share(promise)
    with pytest.raises(TypeError):
        capnode.share({"a": print})
    with pytest.raises(ValueError, match="ttl"):
        capnode.share(print, ttl=0)
    near.get(promise)


# The hook that runs when nobody holds a target any more.


class Tracked(Target):
    def __init__(self, log: list[str], name: str = "it") -> None:
        self._log = log
        self._name = name

    def ping(self) -> str:
        return "pong"

    def _released(self) -> None:
        self._log.append(self._name)


@pytest.fixture
def log() -> list[str]:
    return []


def test_the_hook_runs_once_when_the_last_reference_is_gone(wire: Wire, log: list[str]) -> None:
    thing = Tracked(log)
    host = Capnode(lambda: [thing, {"again": thing.ping}])
    one, _ = wire.link(far_index=host, names=("one", "a"))
    two, _ = wire.link(far_index=host, names=("two", "b"))
    kept_one, kept_two = one.get(one.index()), two.get(two.index())
    wire.run()
    del kept_one[0]
    wire.run()
    assert log == []  # its method still holds it
    kept_one.clear()
    wire.run()
    assert log == []  # the other client does
    kept_two.clear()
    wire.run()
    assert log == ["it"]
    assert len(holders) == 0


def test_it_runs_when_the_connection_ends(wire: Wire, log: list[str]) -> None:
    """G9"""
    near, _ = wire.link(far_index=lambda: Tracked(log))
    held = near.get(near.index())
    wire.run()
    near.hang_up()
    near.hang_up()
    wire.run()
    assert log == ["it"]
    del held


def test_it_runs_for_what_only_a_pipeline_used(wire: Wire, log: list[str]) -> None:
    """The value never crossed, and nothing but its answer held it."""
    near, _ = wire.link(
        far_index={"one": lambda: Tracked(log), "in_dict": lambda: {"a": [Tracked(log)]}}
    )
    opened = near.index.one()
    assert near.get(opened.ping()) == "pong"
    wire.run()
    assert log == []
    del opened
    wire.run()
    assert log == ["it"]
    assert near.get(near.index.in_dict()["a"][0].ping()) == "pong"
    wire.run()
    assert log == ["it", "it"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_does_not_run_while_a_promise_still_leads_to_it(
    wire: Wire, log: list[str], kind: str
) -> None:
    async def later() -> Tracked:
        return thing

    thing = Tracked(log)
    near, _ = wire.link(far_index=later if kind == "async" else lambda: thing)
    opened = near.index()
    assert near.get(opened.ping()) == "pong"
    stub = near.get(near.index())
    wire.run()
    del stub
    wire.run()
    assert log == []
    assert near.get(opened.ping()) == "pong"
    del opened
    wire.run()
    assert log == ["it"]


def test_the_index_is_held_as_long_as_its_connection(wire: Wire, log: list[str]) -> None:
    near, _ = wire.link(far_index=Tracked(log))
    assert near.get(near.index.ping()) == "pong"
    wire.run()
    assert log == []
    near.hang_up()
    wire.run()
    assert log == ["it"]


def test_what_is_registered_or_shared_is_held(wire: Wire, log: list[str]) -> None:
    thing = Tracked(log)
    registry = MethodRegistry(secret=SECRET)
    registry.register(thing, "thing")
    cap_id = capnode.share(thing)
    near, _ = wire.link(far_index=Capnode(lambda: thing, registry=registry))
    stub = near.get(near.index())
    wire.run()
    del stub
    wire.run()
    assert log == []
    registry.unregister("thing")
    assert log == []
    capnode.unshare(cap_id)
    assert log == ["it"]


def test_an_async_hook_runs_to_its_end(wire: Wire, log: list[str]) -> None:
    fence = Fence()

    class Slow(Target):
        async def _released(self) -> None:
            await fence.wait()
            log.append("slowly")

    near, _ = wire.link(far_index=lambda: Slow())
    stub = near.get(near.index())
    del stub
    wire.run()
    assert log == []
    fence.set()
    wire.run()
    assert log == ["slowly"]


def test_a_hook_that_raises_is_logged(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Target):
        def _released(self) -> None:
            raise OSError("gone wrong")

    near, _ = wire.link(far_index=lambda: Bad())
    with caplog.at_level(logging.DEBUG, "capnode_py"):
        stub = near.get(near.index())
        del stub
        wire.run()
    assert "gone wrong" in caplog.text


def test_the_hook_is_not_called_from_afar(wire: Wire, log: list[str]) -> None:
    near, _ = wire.link(far_index=Tracked(log))
    with pytest.raises(RemoteError):
        near.get(near.index["_released"]())
    assert log == []


def test_a_stub_is_a_stub_however_it_came(wire: Wire) -> None:
    near, _ = wire.link(far_index=Bank())
    assert type(near.peer.reconstruct(near.index.cap_id)) is Stub


# Small promises of names, texts and bounds.


def test_cap_ids_stay_out_of_protocol_errors(wire: Wire) -> None:
    for message in (
        [8, "cap.c.SECRETSECRET"],
        [1, "cap.c.SECRETSECRET", 5],
        [5, "cap.c.SECRET", 1],
    ):
        near, far = wire.link(far_index=Bank(), names=("near", f"far {message[0]}"))
        content = cbor2.dumps([message])
        far.feed(frame_head(len(content)) + content)
        assert isinstance(far.session.error, capnode.ProtocolError)
        assert "SECRET" not in str(far.session.error)
        wire.run()
        assert "SECRET" not in str(near.session.error)


def test_a_cap_id_that_comes_is_bounded_and_a_stub_has_one(wire: Wire) -> None:
    """A peer that sends ever new ones fills no memory."""
    near, far = wire.link(far_index=Bank())
    account = near.get(near.index.open())
    for n in range(100):
        near.session._seam.name(account, CapId(f"cap.r.{n}"))
    assert len(near.session._seam._named) == 1

    content = cbor2.dumps([[1, 0, ["put"], [cbor2.CBORTag(TAG_REF, [0, -1, "x" * 101])]]])
    far.feed(frame_head(len(content)) + content)
    assert far.session.error is None
    with pytest.raises(Exception, match="malformed reference"):
        raise far.session.exports.find(2).value
    near.hang_up()


def test_giving_up_many_reconstructed_stubs_takes_its_time_in_their_number(wire: Wire) -> None:
    """Each looks at its own ids, not at the whole table."""
    bank = Bank()
    registry = MethodRegistry(secret=SECRET)
    cap_id = registry.register(bank.account_, "account")
    one, *_ = two_clients(wire, bank, registry)
    stub = one.peer.reconstruct(cap_id)
    assert one.get(one.index.open()) is stub
    assert len(one.session._seam.other_ids[stub]) == 1
    stub.dealloc()
    wire.run()
    assert len(one.session.imports) == 1
    assert not one.session._seam.other_ids
    registry.unregister("account")


def test_an_object_with_two_names_keeps_the_other(wire: Wire) -> None:
    registry = MethodRegistry(secret=SECRET)
    account = Account()
    first, second = registry.register(account, "one"), registry.register(account, "two")
    assert registry.register(account, "two") == second
    near, _ = wire.link(far_index=Capnode(lambda: account, registry=registry))
    assert near.get(near.index()).cap_id == first
    registry.unregister("one")
    assert near.get(near.index()).cap_id == second
    registry.unregister("two")
    assert near.get(near.index()).cap_id not in (first, second)


def test_what_cannot_be_shared_is_told_in_words_that_fit() -> None:
    for value in ({"a": print}, 5, None):
        with pytest.raises(TypeError, match=r"takes a function, a capnode\.Target or a stub"):
            capnode.share(value)
        with pytest.raises(TypeError, match=r"register\(\) takes a function"):
            MethodRegistry().register(value, "it")
    with pytest.raises(TypeError, match="number of seconds"):
        capnode.share(print, ttl="60")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unshare"):
        capnode.unshare(None)  # type: ignore[arg-type]


def test_a_peer_is_asked_for_what_is_its_own(wire: Wire) -> None:
    """Else the id would mean another object, on the wrong connection."""
    one, two, *_ = two_clients(wire, Bank())
    theirs = two.get(two.index.open())
    for target in (theirs, theirs.put, two.index.open()):
        with pytest.raises(TypeError, match="is on another"):
            one.peer.notify(target, 1)
        with pytest.raises(TypeError, match="is on another"):
            one.peer.with_options(target, timeout=5)
    with pytest.raises(TypeError, match=r"as in peer\.with_options\(peer\.index\.add, timeout=5\)"):
        one.peer.with_options(print, timeout=5)
    assert two.get(theirs.balance()) == 0


def test_the_repr_of_a_reconstructed_stub_names_no_id(wire: Wire) -> None:
    one, two, *_ = two_clients(wire, Bank())
    account = one.get(one.index.open())
    assert repr(two.peer.reconstruct(account.cap_id)) == "<Stub by cap_id, of host b>"


def test_a_registered_facade_may_break_and_come_again(wire: Wire) -> None:
    """Two ids of one stub, each of which breaks once."""
    account = Account(3)
    facade, revoke = capnode.revocable(account)
    registry = MethodRegistry(secret=SECRET)
    registry.register(facade, "facade")
    near, _ = wire.link(far_index=Capnode(lambda: facade, registry=registry))
    stub = near.get(near.index())
    assert near.get(stub.balance()) == 3
    revoke("over")
    again = near.get(near.index())
    wire.run()
    assert near.session.error is None
    with pytest.raises(RemoteError, match="over"):
        near.get(again.balance())
    registry.unregister("facade")


def test_an_answer_whose_promises_settle_at_once_leaves_nothing(wire: Wire) -> None:
    near, _ = wire.link(far_index=lambda callback: [callback()])
    for _ in range(10):
        assert near.get(near.index(lambda: 5)) == [5]
    wire.run()
    assert near.session.incoming.resolved == {}


def test_there_is_one_way_to_write_a_cap_id(wire: Wire) -> None:
    registry = MethodRegistry(secret=SECRET)
    cap_id = registry.register(len, "len")
    near, _ = wire.link(far_index=Capnode(registry=registry))
    for text in (
        cap_id[:20] + "!!" + cap_id[20:],
        cap_id + "AAAA",
        cap_id + "=",
        f"{cap_id[:-1]}é",
    ):
        with pytest.raises(LookupError):
            near.get(near.peer.reconstruct(text)("four"))
    assert near.get(near.peer.reconstruct(f" {cap_id}\n")("four")) == 4  # as read from a file


def test_what_was_unshared_early_leaves_nothing() -> None:
    from capnode_py._lasting import shares

    before = len(shares._ends)
    for _ in range(1000):
        capnode.unshare(capnode.share(len, ttl=3600))
    assert len(shares._ends) <= before + 101


def test_a_stub_with_a_time_limit_is_registered_as_the_stub(wire: Wire) -> None:
    behind, _ = wire.link(far_index=Bank(), names=("middle", "behind"))
    account = behind.get(behind.index.open())
    registry = MethodRegistry(secret=SECRET)
    cap_id = registry.register(behind.peer.with_options(account, timeout=5), "account")
    index = {"account": account}
    near, _ = wire.link(far_index=Capnode(index, registry=registry), names=("n", "h"))
    assert near.get(near.index.account).cap_id == cap_id
    registry.unregister("account")
    index.clear()


def test_a_stub_that_was_given_up_holds_nothing_for_who_asked_about_it(wire: Wire) -> None:
    bank = Bank()
    one, two, _, far_two = two_clients(wire, bank)
    account = one.get(one.index.open())
    stub = two.peer.reconstruct(account.cap_id)
    told: list[BaseException] = []
    two.peer.on_broken(stub, told.append)
    assert two.get(stub.balance()) == 0
    assert len(far_two.session.exports) == 3
    stub.dealloc()
    two.get(two.index.keep())
    wire.run()
    assert len(far_two.session.exports) == 1
    two.hang_up()
    assert told == []
