"""Journals of settled batches: kept for 15 minutes, within bounds, and readable whatever became of their writer."""

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from worker.campaigns import kept_journals
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.kept_journals import KEPT_SECONDS, KeptBatch, KeptJournals

LINES = b'["r-1"]\n["r-1",["accepted","2026-01-31T12:00:00",null,null,["<r-1@x>",null,null]]]\n'


@pytest.fixture
def kept(tmp_path: Path) -> KeptJournals:
    return KeptJournals(tmp_path)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kept"))


def test_the_newest_batch_comes_first(kept: KeptJournals, tmp_path: Path) -> None:
    """Over all files, also those of other processes; a batch of which nothing left is not kept."""
    kept.keep("a", LINES)
    kept.keep("b", b'["r-2"]\n')
    kept.keep("nothing", b"")
    [first] = files(tmp_path)
    os.utime(first, (1.0, 1.0))
    other = KeptJournals(tmp_path)
    other.keep("c", LINES)
    assert [each.id for each in kept.newest_first()] == ["c", "b", "a"]
    assert list(kept.newest_first())[-1] == KeptBatch("a", LINES)


def test_what_a_kill_cut_off(kept: KeptJournals, tmp_path: Path) -> None:
    """Cut at any byte, whole lines are still read, and the batches before them."""
    kept.keep("a", LINES)
    kept.keep("b", LINES)
    [path] = files(tmp_path)
    content = path.read_bytes()
    for end in range(len(content) // 2, len(content)):
        path.write_bytes(content[:end])
        found = list(kept.newest_first())
        assert found[-1].id == "a"
        assert found[-1].lines.startswith(LINES)
        assert [LINES.startswith(each.lines) for each in found[:-1]] == [True] * (len(found) - 1)


def test_old_files_are_removed(kept: KeptJournals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 minutes after the last settlement in a file, and only then."""
    kept.keep("old", LINES)
    [old] = files(tmp_path)
    KeptJournals(tmp_path).keep("new", LINES)
    age = KEPT_SECONDS + 2 * kept_journals.FILE_SECONDS
    os.utime(old, (time.time() - age, time.time() - age))
    kept.sweep()  # a minute has not passed
    assert old in files(tmp_path)
    monkeypatch.setattr(kept_journals, "FILE_SECONDS", 0.0)
    kept.sweep()
    assert [each.id for each in kept.newest_first()] == ["new"]


def test_they_are_bounded(kept: KeptJournals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones go when there are too many bytes."""
    monkeypatch.setattr(kept_journals, "FILE_BYTES", 3 * len(LINES))
    monkeypatch.setattr(kept_journals, "KEPT_BYTES", 12 * len(LINES))
    for number in range(40):
        kept.keep(f"{number:02}", LINES)
        assert sum(each.stat().st_size for each in files(tmp_path)) <= kept_journals.KEPT_BYTES
    found = [each.id for each in kept.newest_first()]
    assert found == [f"{number:02}" for number in reversed(range(40 - len(found), 40))]
    assert len(found) >= 6


def test_a_full_disk(kept: KeptJournals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, sending goes on, and what is settled after it is kept again."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept.keep("a", LINES)
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(os, "write", full)
        kept.keep("b", LINES)
        kept.keep("c", LINES)
    assert [record.message for record in caplog.records if "cannot be kept" in record.message] == [
        "settled journals cannot be kept: after a fail-over messages could leave twice"
    ]
    kept.keep("d", LINES)
    assert {"a", "d"} <= {each.id for each in kept.newest_first()}


def test_a_settled_batch_is_kept(tmp_path: Path) -> None:
    """Whether its own process settled it or a successor, with all its lines, and no journal of it is left."""
    place = JournalDirectory(tmp_path)
    own = place.create("own", 2)
    own.started("r-1")
    own.remove()
    place.create("left", 2).close()
    place.restore("orphan", LINES)
    orphan = place.take_over("orphan")
    assert orphan
    assert orphan.read().keys() == {"r-1"}
    orphan.remove()
    assert list(place.kept.newest_first()) == [KeptBatch("orphan", LINES), KeptBatch("own", b'["r-1"]\n')]
    assert place.batch_ids() == ["left"]
    place.close()


def test_a_journal_that_is_there_is_not_restored(tmp_path: Path) -> None:
    place = JournalDirectory(tmp_path)
    place.restore("a", LINES)
    place.restore("a", b'["r-9"]\n')
    assert place.lines_of("a") == LINES
