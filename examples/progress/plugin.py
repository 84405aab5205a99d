"""A plugin that tells how far it is, and can be stopped. `script.py` starts it."""

import asyncio

import capnode_py as capnode


class Thumbnails(capnode.Target):
    """Its public methods are what the parent can call."""

    async def make(self, names, on_progress):
        made = []
        try:
            for name in names:
                await asyncio.sleep(0.01)  # the work
                made.append(f"thumb-{name}")
                await on_progress(len(made), len(names))
        finally:
            print(f"{len(made)} made")  # a print goes to stderr: stdout is the wire
        return made


capnode.serve_stdio(Thumbnails())
