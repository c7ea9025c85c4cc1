"""The states and names of programs, as the watchdog has them from supervisord."""

import pytest
from supervisor.states import ProcessStates

from worker.errors import SettingsError
from worker.supervision.supervisord_client import ProgramStatus, Supervisord, program_name


@pytest.mark.parametrize(
    ("state", "status", "bad"),
    [
        (ProcessStates.EXITED, 2, True),
        (ProcessStates.EXITED, 0, False),
        (ProcessStates.EXITED, 1, False),
        (ProcessStates.RUNNING, 2, False),
        (ProcessStates.STOPPED, 2, False),
    ],
)
def test_bad_settings(state: int, status: int, bad: bool) -> None:
    """Only a program that ended by itself with status 2 is down because of its settings."""
    assert ProgramStatus("campaign", state, exit_status=status).has_bad_settings is bad


def test_the_names_of_programs() -> None:
    """As supervisorctl shows them."""
    assert program_name("campaign", "campaign") == "campaign"
    assert program_name("mail_00", "mail") == "mail:mail_00"


def test_it_cannot_be_started_by_hand() -> None:
    """Without supervisord's address the error explains how bin/watchdog is started."""
    with pytest.raises(SettingsError, match="which supervisord starts"):
        Supervisord({})
