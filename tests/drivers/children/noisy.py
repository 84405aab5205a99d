"""A child that has written to stdout before it serves: by print, and raw."""

import os
import sys

import capnode_py as capnode

print("printed at import")  # stays in the buffer: stdout is no terminal
os.write(1, b"raw at import " * int(sys.argv[1]))


def hello() -> str:
    return "hello"


capnode.serve_stdio({"hello": hello})
