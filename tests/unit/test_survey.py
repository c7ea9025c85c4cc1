"""What a tick of the campaign job finds to do."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from worker.campaigns.survey import Survey

NOW = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
NOTHING: dict[str, Any] = {
    "next_scheduled": None,
    "any_running": False,
    "any_batch": False,
    "next_batch": None,
    "next_ask": None,
}


def test_nothing_to_do() -> None:
    """Without campaigns the tick is over after one statement."""
    assert Survey(**NOTHING).is_idle(NOW)


@pytest.mark.parametrize(("seconds", "due"), [(-1, True), (0, True), (1, False)])
def test_a_scheduled_campaign(seconds: int, due: bool) -> None:
    """It is due from its time on, to the moment."""
    survey = Survey(**(NOTHING | {"next_scheduled": NOW + timedelta(seconds=seconds)}))
    assert survey.any_due(NOW) is due
    assert survey.is_idle(NOW) is not due


@pytest.mark.parametrize(
    "found", [{"any_running": True}, {"any_batch": True}, {"next_batch": NOW}, {"next_ask": NOW + timedelta(days=1)}]
)
def test_work_in_progress(found: dict[str, Any]) -> None:
    """A running campaign, a claimed batch or a message without an answer is looked at in every tick."""
    assert not Survey(**(NOTHING | found)).is_idle(NOW)
