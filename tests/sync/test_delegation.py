"""cap_ids on connections that block: handed on, lasting, shared, and good for nothing."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode

pytestmark = pytest.mark.usefixtures("nothing_left")

HOST = """
import sys
import capnode_py as capnode

url, secret = sys.argv[1:]

class Counter(capnode.Target):
    def __init__(self):
        self.value = 0

    def add(self, n):
        self.value += n
        return self.value

registry = capnode.MethodRegistry(secret=secret.encode())
counter = Counter()
registry.register(counter, "the counter")
host = capnode.Capnode({"counter": lambda: counter, "new": Counter}, registry=registry)
server = capnode.sync.listen(url, host=host)
server.serve_background()
capnode.serve_stdio({"url": lambda: url})
"""


def started(url: str, secret: str) -> Any:
    return capnode.sync.spawn([sys.executable, "-c", HOST, url, secret])


def test_a_registered_reference_outlives_its_process(tmp_path: Path):
    """No event loop on either side; the host is killed and started again."""
    url = f"unix:{tmp_path}/s"
    with started(url, "a secret of the registry") as host:
        with capnode.sync.connect(host.index.url()) as peer:
            counter = peer.index.counter()
            cap_id = str(counter.cap_id)
            assert counter.add(1) == 1
        os.kill(host.pid, signal.SIGKILL)
    with (
        started(url, "a secret of the registry") as host,
        capnode.sync.connect(host.index.url()) as peer,
    ):
        assert peer.reconstruct(cap_id).add(2) == 2
        assert peer.index.counter().cap_id == cap_id
    with (
        started(url, "another secret altogether") as host,
        capnode.sync.connect(host.index.url()) as peer,
        pytest.raises(LookupError, match="stands for nothing"),
    ):
        peer.reconstruct(cap_id).add(2)


class Account(capnode.Target):
    """Something to hand on."""

    def balance(self) -> int:
        return 7


def test_a_cap_id_is_handed_from_one_client_to_another(tmp_path: Path):
    """And is worth nothing once its connection is over, or what it stands for was given up."""
    account = Account()
    host = capnode.Capnode({"open": lambda: account})
    with capnode.sync.listen(f"unix:{tmp_path}/s", host=host) as server:
        server.serve_background()
        with (
            capnode.sync.connect(f"unix:{tmp_path}/s") as one,
            capnode.sync.connect(f"unix:{tmp_path}/s") as two,
        ):
            stub = one.index.open()
            cap_id = str(stub.cap_id)
            assert one.reconstruct(cap_id) is stub
            kept = two.reconstruct(cap_id)
            assert kept.balance() == 7
            stub.dealloc()
            one.ping()
            assert kept.balance() == 7
            kept.dealloc()
            with pytest.raises(LookupError, match="stands for nothing"):
                two.reconstruct(cap_id).balance()


def test_what_is_shared_is_good_until_its_time_is_over_or_it_is_unshared(
    monkeypatch: pytest.MonkeyPatch,
):
    now = 1000.0
    monkeypatch.setattr("capnode_py._lasting.time.monotonic", lambda: now)
    with capnode.sync.pair() as (near, _):
        for_a_minute = capnode.share(Account(), ttl=60)
        for_ever = capnode.share(Account())
        assert near.reconstruct(for_a_minute).balance() == near.reconstruct(for_ever).balance() == 7
        now += 61
        capnode.unshare(for_ever)
        for cap_id in (for_a_minute, for_ever):
            with pytest.raises(LookupError, match="stands for nothing"):
                near.reconstruct(cap_id).balance()
