"""A connection over two `multiprocessing` queues: any transport of messages carries one."""

import asyncio
import multiprocessing
import threading

import capnode_py as capnode


def connect(host, inbound, outbound):
    remote = host.create_remote()
    remote.add_remote_message_listener(outbound.put)

    def receive():  # in a thread, since `get` blocks; the last message is empty
        while message := inbound.get():
            remote.receive_message(message)
        remote.receive_message(b"")

    threading.Thread(target=receive).start()
    return remote


def child(*queues):
    async def serve():
        await connect(capnode.Capnode(index), *queues).wait_closed()

    index = {"count": lambda words, count: {word: count(word) for word in words}}
    asyncio.run(serve())


async def main():
    queues: list = [multiprocessing.Queue(), multiprocessing.Queue()]  # there, and back
    multiprocessing.Process(target=child, args=queues).start()
    async with connect(capnode.Capnode(), *reversed(queues)) as remote:
        print(await remote.index.count(["bee", "wasp"], len))


if __name__ == "__main__":
    asyncio.run(main())
