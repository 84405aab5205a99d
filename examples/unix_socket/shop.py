"""A service that calls another, and is called by it: `shop.py SOCKET NAME`. See `warehouse.py`."""

import asyncio
import sys

import capnode_py as capnode


class Shop(capnode.Target):
    """What the warehouse can call."""

    def __init__(self, name):
        self._name = name

    def stock_changed(self, item, left):
        print(f"{self._name} hears: {left} of {item} left")


async def main(path, name):
    async with capnode.connect(f"unix:{path}", index=Shop(name)) as warehouse:
        print(await warehouse.index.open_account(name))
        print("got", await warehouse.index.order("tea", 3))
        try:
            await warehouse.index.order("tea", 100)
        except ValueError as error:
            print("refused:", error)


asyncio.run(main(*sys.argv[1:]))
