"""Objects that lead to objects. Nothing here knows of pipelining: that is the caller's."""

import capnode_py as capnode


class File(capnode.Target):
    def __init__(self, name, lines):
        self._name = name
        self._lines = lines

    @property
    def name(self):
        return self._name

    def line(self, number):
        return self._lines[number]


class Folder(capnode.Target):
    def open(self, name):
        return File(name, [f"line {number} of {name}" for number in range(100)])

    def newest(self):
        return "b.txt"


class Disk(capnode.Target):
    def folder(self, _path):
        return Folder()


capnode.serve_stdio(Disk())
