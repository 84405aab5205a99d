"""A service on a unix socket. Every connection gets an index of its own. See `shop.py`."""

import asyncio
import sys

import capnode_py as capnode

stock = {"tea": 10}
shops: dict = {}


class Desk(capnode.Target):
    """What one shop can do."""

    async def open_account(self, name):
        # The other service, whose index is called like this one's.
        shops[name] = capnode.current_peer().index
        return f"welcome, {name}"

    async def order(self, item, count):
        if stock[item] < count:
            raise ValueError(f"only {stock[item]} of {item} left")
        stock[item] -= count
        told = [shop.stock_changed(item, stock[item]) for shop in shops.values()]
        await asyncio.gather(*told, return_exceptions=True)  # a shop may have gone
        return count


async def main(path):
    async with capnode.listen(f"unix:{path}", index_for=lambda _peer: Desk()) as listener:
        print("listening", flush=True)
        await listener.wait_closed()


asyncio.run(main(sys.argv[1]))
