"""What `make night` takes for a right morning; the night itself needs a server and minutes."""

from __future__ import annotations

import pytest

from benchmarks.night import EXPECTED, _judge
from tests.support.webhook import Webhook

TOLD = [{"state": "Failed"}, {"state": "Failed"}, {"state": "Suspended"}]


def test_the_morning_that_is_expected():
    assert _judge(dict(EXPECTED), Webhook(posted=TOLD)) == 0


@pytest.mark.parametrize(
    ("entry", "ending", "posted"),
    [("spam", "fresh", TOLD), ("cut-short", "failed", TOLD), ("spam", "failed", TOLD[1:])],
)
def test_a_morning_that_hides_something_is_seen(
    entry: str, ending: str, posted: list[dict[str, str]]
):
    assert _judge({**EXPECTED, entry: ending}, Webhook(posted=posted)) == 1
