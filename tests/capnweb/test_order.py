"""The order of calls where no word stands for a position: a read of the promise does."""

from __future__ import annotations

from typing import Any

import capnode_py as capnode

from .conftest import Raw


class Thing(capnode.Target):
    def __init__(self) -> None:
        self.heard: list[int] = []

    def hit(self, n: int) -> None:
        self.heard.append(n)


class Boxes(capnode.Target):
    """Gives a box with a promise in it, which becomes its own thing by way of the other side."""

    def __init__(self) -> None:
        self.thing = Thing()
        self.promises: list[Any] = []

    def boxed(self) -> dict:
        promise = capnode.current_peer().index.echo(self.thing)
        self.promises.append(promise)
        return {"in": [promise]}


def test_a_promise_that_comes_home_is_held_until_it_has_been_read_back(web):
    heard: list[int] = []

    def hit(n: int) -> None:
        heard.append(n)

    near, far = web.link(far_index={"echo": lambda x: x})
    promise = near.index.echo(hit)
    task = near.spawn(promise)
    near.flush()
    far.deliver("push", "pull")
    first = promise(0)
    near.flush()  # the call is on its way there while the value comes home
    near.deliver("resolve")
    assert not task.done
    second = promise(1)
    web.run()
    assert task.result() is hit
    assert heard == [0, 1]
    del promise, first, second, task


def test_a_promise_in_what_is_read_back_is_passed_behind_the_calls_on_it(web):
    boxes = Boxes()
    near, far = web.link({"echo": lambda x: x}, far_index=boxes)
    box = near.index.boxed()
    calls = [box["in"][0].hit(0)]
    near.flush()
    far.deliver()  # which asks near to echo its thing, and sends the call there
    theirs = far.spawn(boxes.promises.pop())
    far.flush()
    task = near.spawn(box)
    near.blocked = True  # what comes to it waits
    near.flush()
    far.deliver()  # the box is asked for, and given
    calls.append(box["in"][0].hit(1))
    near.blocked = False
    near.flush()
    while near.inbox:
        near.deliver()
    calls.append(box["in"][0].hit(2))
    web.run()
    assert boxes.thing.heard == [0, 1, 2]
    del box, calls, task, theirs


def test_a_read_back_stands_behind_the_calls_on_promises_in_the_value(web):
    """E18: those have gone on to a third party, and so must what asks whether they have come."""
    thing = Thing()
    other, third = web.link(far_index={"give": lambda: thing}, names=("other", "third"))
    _, far = web.link(far_index={"boxed": lambda: {"in": [other.index.give()]}})
    raw = Raw(web, far)
    raw.send(["push", ["pipeline", 0, ["boxed"], []]])
    raw.send(["push", ["pipeline", 1, ["in", 0, "hit"], [0]]])
    assert raw.send(["stream", ["pipeline", 1]]) == []
    assert thing.heard == []
    other.flush()
    while third.inbox or other.inbox:
        for side in (third, other):
            while side.inbox:
                side.deliver()
            side.flush()
    assert thing.heard == [0]
    assert ["resolve", 3] in [answer[:2] for answer in raw.said()]
    for message in (["release", 1, 1], ["release", 2, 1], ["release", -1, 1]):
        raw.send(message)
    web.run()
