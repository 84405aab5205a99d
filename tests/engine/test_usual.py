"""Usual calls are answered straight (`Incoming._usual_call`), and nobody can tell."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from capnode_py import Limits, RemoteError, Target
from capnode_py._frames import frame_head
from capnode_py._messages import CALL, CANCEL, PULL, PUSH, RELEASE
from capnode_py.driver._handlers import current_peer, in_thread
from capnode_py.testing import FakeDriver, Wire


def frame(*messages: Any) -> bytes:
    """A frame of messages as the near side might send them."""
    content = cbor2.dumps(list(messages))
    return frame_head(len(content)) + content


def answers(side: FakeDriver) -> list[tuple[str, Any]]:
    """The outcomes that a side has sent, and for which id."""
    return [(m.word, m.fields[0]) for m in side.sent if m.word in ("resolve", "reject")]


class Folder(Target):
    def __init__(self, name: str = "top") -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def open(self, name: str) -> Folder:
        return Folder(name)

    def names(self) -> list[str]:
        return [self._name, "b"]

    def _hidden(self) -> None: ...


class Locked(Folder):
    name = None  # type: ignore[assignment]
    names = property(lambda self: ["only read"])


def test_an_answer_can_be_named_after_it_was_sent(wire: Wire) -> None:
    near, far = wire.link(far_index=Folder())
    folder = near.index.open("a")
    names = near.index.names()
    tasks = [near.spawn(promise) for promise in (folder, names, folder.name(), names[1])]
    near.flush()
    assert [message.word for message in far.coming()] == ["call"] * 4
    wire.run()
    assert [task.result() for task in tasks[1:]] == [["top", "b"], "a", "b"]
    assert far.counts()["resolve"] == 4


def test_what_is_said_of_an_answer_that_was_sent_changes_nothing(wire: Wire) -> None:
    _, far = wire.link(far_index={"add": lambda a, b: a + b})
    far.feed(frame([CALL, 0, ["add"], [1, 2]]))
    far.feed(frame([CANCEL, 1], [PULL, 1]))
    assert answers(far) == [("resolve", 1)]
    far.other.inbox.clear()
    far.feed(frame([RELEASE, [1], []]))


@pytest.mark.parametrize("name", ["name", "names", "_hidden", "", "missing", "__len__"])
def test_only_public_methods_of_the_class_are_usual(wire: Wire, name: str) -> None:
    near, far = wire.link(far_index=Locked())
    with pytest.raises(RemoteError):
        near.get(near.index[name]())
    assert far.counts()["reject"] == 1


def test_a_method_of_target_itself_is_not_for_the_other_side(wire: Wire, monkeypatch: Any) -> None:
    monkeypatch.setattr(Target, "tool", lambda self: "for all", raising=False)
    near, _ = wire.link(far_index=Folder())
    with pytest.raises(AttributeError):
        near.get(near.index.tool())


def test_a_method_that_changes_is_the_new_one_in_the_next_call(
    wire: Wire, monkeypatch: Any
) -> None:
    near, _ = wire.link(far_index=Folder())
    assert near.get(near.index.name()) == "top"
    monkeypatch.setattr(Folder, "name", lambda self: "new")
    assert near.get(near.index.name()) == "new"
    monkeypatch.setattr(Folder, "name", staticmethod(lambda: "static"))
    assert near.get(near.index.name()) == "static"
    monkeypatch.setattr(Folder, "name", "no method any more")
    with pytest.raises(AttributeError):
        near.get(near.index.name())


def test_what_a_decorator_makes_of_a_method_counts_from_the_next_call_on(wire: Wire) -> None:
    class Late(Target):
        def name(self) -> str:
            return "usual"

    near, _ = wire.link(far_index=Late())
    assert near.get(near.index.name()) == "usual"
    in_thread(Late.name)
    with pytest.raises(NotImplementedError, match="real driver"):
        near.get(near.index.name())


def test_an_instance_attribute_does_not_hide_a_method(wire: Wire) -> None:
    folder = Folder()
    vars(folder)["name"] = lambda: "hidden"
    near, _ = wire.link(far_index=folder)
    assert near.get(near.index.name()) == "top"


def test_a_handler_knows_its_peer_and_an_in_thread_one_its_thread(wire: Wire) -> None:
    @in_thread
    def elsewhere() -> None: ...

    near, _ = wire.link(far_index={"who": lambda: current_peer().nickname, "elsewhere": elsewhere})
    assert near.get(near.index.who()) == "far"
    with pytest.raises(NotImplementedError, match="real driver"):
        near.get(near.index.elsewhere())


# A driver that reads while a handler waits: the blocking one does.


def test_a_call_through_an_answer_that_is_being_made_waits_for_it(wire: Wire) -> None:
    def make() -> Folder:
        far.received(frame([CALL, 1, ["name"], []]))
        assert answers(far) == []
        return Folder("made")

    _, far = wire.link(far_index={"make": make})
    far.feed(frame([CALL, 0, ["make"], []]))
    assert [id for _, id in sorted(answers(far), key=str)] == [1, 2]
    assert far.started == ["make", "name"]
    far.other.inbox.clear()
    far.feed(frame([RELEASE, [1, 2], [[-1, 1]]]))


def test_an_answer_that_is_given_up_while_it_is_made_is_not_sent(wire: Wire) -> None:
    def make() -> int:
        far.received(frame([RELEASE, [1], []]))
        return 1

    _, far = wire.link(far_index={"make": make})
    far.feed(frame([CALL, 0, ["make"], []]))
    assert answers(far) == []


def test_a_handler_that_was_withdrawn_meanwhile_still_answers_once(wire: Wire) -> None:
    def make() -> int:
        far.received(frame([CANCEL, 1]))
        return 1

    def fail() -> int:
        far.received(frame([CANCEL, 2]))
        raise ValueError

    _, far = wire.link(far_index={"make": make, "fail": fail})
    far.feed(frame([CALL, 0, ["make"], []]))
    far.feed(frame([CALL, 0, ["fail"], []]))
    assert answers(far) == [("resolve", 1), ("reject", 2)]
    far.other.inbox.clear()
    far.feed(frame([RELEASE, [1, 2], []]))


def test_a_handler_that_ends_the_session_sends_no_answer(wire: Wire) -> None:
    def make() -> int:
        far.hang_up()
        return 1

    _, far = wire.link(far_index={"make": make})
    far.feed(frame([CALL, 0, ["make"], []]))
    assert answers(far) == []


def test_a_peer_that_calls_for_ever_and_never_releases_is_stopped(wire: Wire) -> None:
    _, far = wire.link(far_index={"add": lambda a, b: a + b}, far_limits=Limits(max_exports=3))
    far.feed(frame(*[[CALL, 0, ["add"], [1, 2]]] * 3))
    assert "max_exports" in str(far.session.error)
    far.other.hang_up()


def test_a_push_is_run_at_once_and_answered_once_it_is_pulled(wire: Wire) -> None:
    _, far = wire.link(far_index=Folder())
    far.feed(frame([PUSH, 0, ["open"], ["a"]], [PUSH, 1, ["names"], []], [CALL, 1, ["name"], []]))
    assert far.started == ["open", "names", "name"]
    assert answers(far) == [("resolve", 3)]
    far.feed(frame([PULL, 2], [PULL, 2]))
    assert answers(far) == [("resolve", 3), ("resolve", 2)]
    far.other.inbox.clear()
    far.feed(frame([RELEASE, [1, 2, 3], []]))
