"""When a snapshot is due, which points were lost since, and which files of a folder are copies."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from worker.vectors.collection import CollectionSnapshot
from worker.vectors.scratch import new_scratch_name, scratch_collections
from worker.vectors.snapshots import (
    ACCEPTED,
    UNFINISHED,
    Backup,
    SnapshotCopies,
    SnapshotRecord,
    backup_of_lost_points,
    backups,
    is_due,
    taken_at,
    unfinished_snapshot,
)

DAY = 86_400.0
NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC as everywhere in the worker
MIDNIGHT = NOON.replace(hour=0)


def backup(taken_at: datetime, points: int | None = None, name: str = "c") -> Backup:
    return Backup(name, taken_at, None if points is None else SnapshotRecord(taken_at, points, points))


def snapshot(name: str, taken_at: datetime = NOON) -> CollectionSnapshot:
    return CollectionSnapshot(name, taken_at, 1, None)


@pytest.mark.parametrize(
    ("taken_at", "due"),
    [
        (MIDNIGHT, False),
        (MIDNIGHT + timedelta(seconds=1), False),
        (MIDNIGHT - timedelta(seconds=1), True),
        (NOON, False),
        (NOON + timedelta(minutes=9), False),  # Qdrant's clock is a little ahead
        (NOON + timedelta(hours=9), True),  # Qdrant's clock is wrong: the time of that snapshot does not count
        (NOON - timedelta(days=30), True),
    ],
)
def test_due_once_for_each_interval(taken_at: datetime, due: bool) -> None:
    """There has to be one since midnight UTC: a restart takes none, a missed one is taken later."""
    assert is_due([backup(taken_at)], NOON, DAY) is due
    assert is_due([backup(NOON + timedelta(days=3)), backup(taken_at)], NOON, DAY) is due


def test_due_when_there_is_none() -> None:
    assert is_due([], NOON, DAY)


def test_the_workers_clock_counts() -> None:
    """If Qdrant's clock is wrong, the worker's snapshots keep their order, and none is due again too early."""
    at = {"old-1-2027-01-01-00-00-00.snapshot": NOON + timedelta(days=400), "new": NOON - timedelta(hours=30)}
    records = {
        "old-1-2027-01-01-00-00-00.snapshot": SnapshotRecord(NOON - timedelta(days=1), 1, 1),
        "new": SnapshotRecord(NOON, 2, 2),
    }
    known = backups(at, records)
    assert [each.name for each in known] == ["new", "old-1-2027-01-01-00-00-00.snapshot"]
    assert not is_due(known, NOON + timedelta(minutes=5), DAY)
    assert is_due(known, NOON + timedelta(days=1), DAY)
    assert [each.name for each in backups({"a": NOON, "b": NOON}, {})] == ["b", "a"], "by name in the same second"


def test_the_time_of_a_snapshot() -> None:
    """The time in its name, which a copied folder keeps; else the time of its file."""
    assert taken_at(snapshot("crm-1-2026-01-30-09-30-01.snapshot")) == datetime(2026, 1, 30, 9, 30, 1)  # noqa: DTZ001
    assert taken_at(snapshot("crm.snapshot", MIDNIGHT)) == MIDNIGHT


def test_records() -> None:
    """A number of points fits if it is between the smallest and the largest number that was counted."""
    record = SnapshotRecord(NOON, 1_000, 1_200)
    assert [record.fits(points) for points in (999, 1_000, 1_100, 1_200, 1_201)] == [False, True, True, True, False]
    assert (record.points, SnapshotRecord(NOON, 7, 7).points) == ("1,000 to 1,200", "7")


@pytest.mark.parametrize(
    ("held", "points", "lost"),
    [
        (1, 0, True),
        (0, 0, False),
        (None, 0, True),
        (50, 1, True),
        (50, 25, True),
        (50, 26, False),
        (50, 500, False),
        (None, 1, False),
        (20, 1, False),
        (21, 1, True),
    ],
)
def test_a_loss(held: int | None, points: int, lost: bool) -> None:
    """All points are lost, or most of more than a few; a snapshot without a record may have any number of points."""
    known = [backup(NOON, points, "newest"), backup(MIDNIGHT, held, "older")]
    found = backup_of_lost_points(known, points, {})
    assert (found.name if found else None) == ("older" if lost else None)
    assert backup_of_lost_points(known, points, {ACCEPTED: SnapshotRecord(NOON, 0, 0)}) is None, (
        "an operator confirmed that nothing is lost"
    )
    if lost:
        assert (
            backup_of_lost_points(known, points, {ACCEPTED: SnapshotRecord(MIDNIGHT - timedelta(days=1), 0, 0)})
            == known[1]
        )


@pytest.mark.parametrize(
    ("points", "lost"), [(300, None), (151, None), (150, "accepted"), (0, "accepted"), (2_000, None)]
)
def test_a_loss_of_what_was_accepted(points: int, lost: str | None) -> None:
    """An operator restored 300 points: older snapshots with more are no loss, but those 300 are when they go, too."""
    known = [backup(NOON, 0, "empty"), backup(NOON, 10, "taken first"), backup(MIDNIGHT, 300, "accepted")]
    known.append(backup(MIDNIGHT - timedelta(days=1), 5_000, "older"))
    found = backup_of_lost_points(known, points, {ACCEPTED: SnapshotRecord(NOON, 300, 300)})
    assert (found.name if found else None) == lost


def test_a_snapshot_that_the_worker_did_not_wait_for() -> None:
    """The first one after the worker requested it that has no record; not an earlier one, nor one of the next day."""
    record = {UNFINISHED: SnapshotRecord(NOON, 0, 0)}
    early, ours, theirs, late = (
        snapshot(name, NOON + after)
        for name, after in (
            ("early", timedelta(minutes=-11)),
            ("ours", timedelta(seconds=3)),
            ("theirs", timedelta(minutes=20)),
            ("late", timedelta(hours=2)),
        )
    )
    assert unfinished_snapshot([late, theirs, ours, early], record) == ours
    assert unfinished_snapshot([late, ours, early], record | {"ours": SnapshotRecord(NOON, 0, 0)}) is None
    assert unfinished_snapshot([late, early], record) is None
    assert unfinished_snapshot([ours], {}) is None


def test_copies_are_known_by_their_names(tmp_path: Path) -> None:
    """Only this collection's snapshots, with the time in the name; other files stay as they are."""
    names = ["crm-9-2026-01-29-00-00-00.snapshot", "crm-11-2026-01-31-12-00-00.snapshot"]
    others = [
        "crm-2-11-2026-01-31-00-00-00.snapshot",  # another collection's: crm-2
        "crm-11-2026-01-31-00-00-00.snapshot.old",
        "notes.txt",
        ".crm-2-11-2026-01-31-00-00-00.snapshot.part",
    ]
    left = ".crm-12-2026-02-01-00-00-00.snapshot.part"
    for name in [*names, *others, left]:
        (tmp_path / name).write_text("x", "utf-8")
    copies = SnapshotCopies(tmp_path, "crm")
    assert copies.names() == {names[0]: MIDNIGHT - timedelta(days=2), names[1]: NOON}
    copies.remove(names[0])
    copies.remove(names[0])
    copies.remove_partial_files()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[1], *others])


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "other-1-2026-01-31-00-00-00.snapshot", ""])
def test_a_wrong_name_is_not_copied(tmp_path: Path, name: str) -> None:
    """A name from Qdrant never becomes a path outside the folder."""
    assert not SnapshotCopies(tmp_path, "crm").needs(snapshot(name))


def test_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    copies = SnapshotCopies(tmp_path / "none", "crm")
    copies.remove_partial_files()
    assert copies.names() == {}


def test_scratch_collections() -> None:
    """Exactly the names that a verification creates; a collection with a similar name is never dropped."""
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
    made = new_scratch_name("crm")
    assert scratch_collections([made], "crm") == [made]
