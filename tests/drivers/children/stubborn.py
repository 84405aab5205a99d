"""A child that wants to live: it ignores SIGTERM and the end of its stdin."""

import signal
import threading

import capnode_py as capnode

signal.signal(signal.SIGTERM, signal.SIG_IGN)
capnode.serve_stdio({"add": lambda a, b: a + b})
threading.Event().wait(60)
