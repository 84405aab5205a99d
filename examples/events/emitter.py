"""An event emitter: whoever passes a function is told, until it unsubscribes or goes away."""

import asyncio

import capnode_py as capnode

# Functions of the other side, and by which name each asked to be called. They arrive as stubs,
# which hash and compare like any object.
listeners: dict = {}


def subscribe(topic, listener):
    listeners.setdefault(topic, []).append(listener)

    def unsubscribe():  # goes back by reference: the other side's handle on this subscription
        listeners[topic].remove(listener)

    return unsubscribe


async def publish(topic, event):
    """Tell everybody, wait for all, and say how many there were."""
    told = listeners.get(topic, [])
    await asyncio.gather(*(listener(event) for listener in told))
    return len(told)


capnode.serve_stdio({"subscribe": subscribe, "publish": publish, "version": 1})
