"""Break each rule on purpose: the test that holds it must fail. ``python -m tests.sabotage``

A test of an order or of a count can pass for the wrong reason. So each rule of the engine has here
at least one change of the source that breaks it (`breaks.py`), and the test that must then fail.
"""
