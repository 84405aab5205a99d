"""A tool behind stdio: it says what it can do, and does it. `script.py` uses it."""

import capnode_py as capnode


def count_words(text):
    """How often each word stands in a text."""
    words = text.lower().split()
    return {word: words.count(word) for word in sorted(set(words))}


async def summarize(text, ask):
    """The first sentence. `ask` is a function of yours, for a question to your user."""
    first = text.split(".")[0]
    return first.upper() if await ask("in capitals?") else first


def describe(function):
    code = function.__code__
    return {"does": function.__doc__, "takes": code.co_varnames[: code.co_argcount]}


TOOLS = [count_words, summarize]

capnode.serve_stdio(
    {
        "tools": {tool.__name__: tool for tool in TOOLS},
        "about": {tool.__name__: describe(tool) for tool in TOOLS},
    }
)
