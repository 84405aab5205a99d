"""Settings and reports are frozen, given by keyword, and shown with their names."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from capnode_py import Limits
from capnode_py._messages import Hello
from capnode_py._peer import Stats

SOME = Limits(max_depth=10, hello_timeout=2.5)


def test_a_value_that_is_not_given_is_the_default() -> None:
    assert (SOME.max_depth, SOME.hello_timeout) == (10, 2.5)
    assert SOME.max_frame == Limits().max_frame == Limits.max_frame


def test_those_with_the_same_values_are_equal() -> None:
    assert Limits(max_depth=10, hello_timeout=2.5) == SOME != Limits()
    assert len({Limits(), Limits(), SOME}) == 2
    assert Limits() != Hello(versions=[1])


def test_it_does_not_change() -> None:
    limits = Limits()
    with pytest.raises(AttributeError, match="a Limits does not change"):
        limits.max_depth = 1  # type: ignore[misc]  # which is what is tried
    with pytest.raises(AttributeError, match="a Limits does not change"):
        del limits.max_depth
    assert limits == Limits()


def test_a_name_that_there_is_not_and_one_that_is_missing_are_errors() -> None:
    with pytest.raises(TypeError, match=r"^Limits\(\) got an unexpected keyword argument 'depth'$"):
        Limits(depth=1)  # type: ignore[call-arg]  # which is what is tried
    with pytest.raises(TypeError, match=r"^Hello\(\) needs versions=$"):
        Hello()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[call-arg]


def test_it_shows_its_names_and_no_secret() -> None:
    assert repr(SOME).startswith("Limits(max_frame=134217728, max_depth=10, ")
    hello = repr(Hello(versions=[1], session_id=b"seen", secret=b"unseen"))
    assert hello.startswith("Hello(versions=[1], max_frame=")
    assert "session_id=b'seen', application=''" in hello


def test_its_signature_is_what_it_takes() -> None:
    shown = str(inspect.signature(Limits))
    assert shown.startswith("(*, max_frame: 'int' = 134217728, max_depth: 'int' = 64, ")
    assert str(inspect.signature(Stats)).startswith("(*, imports: 'int', exports: 'int', ")


def test_it_can_be_made_again_with_a_value_changed() -> None:
    changed = SOME.__replace__(max_depth=20)  # as copy.replace does, since Python 3.13
    assert (changed.max_depth, changed.hello_timeout, SOME.max_depth) == (20, 2.5, 10)
    with pytest.raises(ValueError, match=r"Limits\.max_depth=0"):
        SOME.__replace__(max_depth=0)


@pytest.mark.parametrize("made_again", [copy.copy, lambda it: pickle.loads(pickle.dumps(it))])
def test_it_can_be_copied_and_pickled(made_again) -> None:
    assert made_again(SOME) == SOME
