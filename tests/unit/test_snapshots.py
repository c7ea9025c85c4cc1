"""When a snapshot is due, what a record says, and which files of a folder are copies."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from worker.recovery import scratch_collections
from worker.snapshots import Copies, Record, is_due
from worker.vector_store import Snapshot

DAY = 86_400.0
NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC as everywhere in the worker
MIDNIGHT = NOON.replace(hour=0)


def snapshot(taken_at: datetime) -> Snapshot:
    return Snapshot("c-1-2026-01-31-00-00-00.snapshot", taken_at, 1, None)


@pytest.mark.parametrize(
    ("taken_at", "due"),
    [
        (MIDNIGHT, False),
        (MIDNIGHT + timedelta(seconds=1), False),
        (MIDNIGHT - timedelta(seconds=1), True),
        (NOON, False),
        (NOON + timedelta(minutes=9), False),  # Qdrant's clock is a little ahead
        (NOON + timedelta(hours=9), True),  # or it is wrong, and nobody knows when that one was taken
        (NOON - timedelta(days=30), True),
    ],
)
def test_due_once_for_each_interval(taken_at: datetime, due: bool) -> None:
    """Since midnight UTC there has to be one: a restart takes none, a missed one is made up for."""
    assert is_due(snapshot(taken_at), None, NOON, DAY) is due


def test_due_when_there_is_none() -> None:
    assert is_due(None, None, NOON, DAY)


def test_the_workers_own_clock_counts() -> None:
    """Where Qdrant's clock is hours away, a snapshot that we took now is not due again in five minutes."""
    for wrong in (NOON - timedelta(hours=30), NOON + timedelta(days=400)):
        assert is_due(snapshot(wrong), None, NOON, DAY)
        assert not is_due(snapshot(wrong), Record(NOON, 1, 1), NOON + timedelta(minutes=5), DAY)
        assert is_due(snapshot(wrong), Record(NOON, 1, 1), NOON + timedelta(days=1), DAY)


def test_records() -> None:
    """A count fits from the fewest to the most points that were seen."""
    record = Record(NOON, 1_000, 1_200)
    assert [record.fits(points) for points in (999, 1_000, 1_100, 1_200, 1_201)] == [False, True, True, True, False]
    assert (record.points, Record(NOON, 7, 7).points) == ("1,000 to 1,200", "7")


def test_copies_are_known_by_their_names(tmp_path: Path) -> None:
    """Only this collection's snapshots, the newest first by the time in the name; other files stay as they are."""
    names = [
        "crm-9-2026-01-29-00-00-00.snapshot",
        "crm-11-2026-01-31-00-00-00.snapshot",
        "crm-10-2026-01-30-00-00-00.snapshot",
    ]
    others = [
        "crm-2-11-2026-01-31-00-00-00.snapshot",  # another collection's: crm-2
        "crm-11-2026-01-31-00-00-00.snapshot.old",
        "notes.txt",
        ".crm-2-11-2026-01-31-00-00-00.snapshot.part",
    ]
    left = ".crm-12-2026-02-01-00-00-00.snapshot.part"
    for name in [*names, *others, left]:
        (tmp_path / name).write_text("x", "utf-8")
    copies = Copies(tmp_path, "crm")
    assert copies.names() == [names[1], names[2], names[0]]
    assert copies.prune(2) == [names[1], names[2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[1], names[2], *others])


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "other-1-2026-01-31-00-00-00.snapshot", ""])
def test_nothing_is_copied_to_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    """What Qdrant calls a snapshot decides no path outside the folder."""
    assert not Copies(tmp_path, "crm").lacks(Snapshot(name, NOON, 1, None))


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert Copies(tmp_path / "none", "crm").names() == []
    assert Copies(tmp_path / "none", "crm").prune(7) == []


def test_scratch_collections_are_ours_alone() -> None:
    """Exactly the names that a verification makes; a collection that only resembles one is never dropped."""
    ours = "crm-verify-0a1b2c3d"
    others = [
        "crm",
        "crm-verify-",
        "crm-verify-0a1b2c3",
        "crm-verify-0a1b2c3d4",
        "xcrm-verify-0a1b2c3d",
        "crm-verify-report",
    ]
    assert scratch_collections([*others, ours], "crm") == [ours]
