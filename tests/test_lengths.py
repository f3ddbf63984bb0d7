"""Standard lengths: sanity, order, and the smallest that fits."""

from __future__ import annotations

from typing import Any

import pytest

from tracefleet.errors import ArtifactError, InputTooLongError
from tracefleet.lengths import check_lengths, smallest_fit


def test_lengths_come_back_in_ascending_order():
    assert check_lengths([128, 32, 64]) == (32, 64, 128)
    assert check_lengths(iter([7])) == (7,)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "at least one"),
        ([0], "at least 1, got 0"),
        ([32, -1], "got -1"),
        ([32, 64, 32], r"got \[32\] more than once"),
        ([True], "got True"),
        ([32.0], "got 32.0"),
        (["32"], "got '32'"),
    ],
)
def test_nonsense_is_refused_and_named(lengths: list[Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_lengths(lengths)


@pytest.mark.parametrize(("tokens", "length"), [(1, 32), (32, 32), (33, 64), (64, 64), (128, 128)])
def test_the_smallest_length_that_holds_the_tokens_serves(tokens: int, length: int):
    assert smallest_fit((32, 64, 128), tokens) == length
    assert smallest_fit((128, 32, 64), tokens) == length


def test_one_token_too_many_is_refused_with_both_numbers():
    with pytest.raises(InputTooLongError, match="129 tokens; expected at most 128") as caught:
        smallest_fit((32, 64, 128), 129)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ArtifactError)
