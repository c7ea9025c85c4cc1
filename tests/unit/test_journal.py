"""The journal: what a process handed over is known to its successor, however it died, and to no one before."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.campaigns import journal
from worker.campaigns.journal import Journal, JournalDirectory, JournalUnwritable
from worker.campaigns.journal_entries import BYTES_FOR_A_RECIPIENT, KIND_CODES
from worker.errors import SettingsError
from worker.messages import Accepted
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind

AT = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
BATCH = "0b6c2f0e-4f0b-4a55-9d6e-2f6f7c0f3c11"
OTHER_BATCH = "5f2a9d58-4c3b-4f0e-8a43-0f3d8f1b7a22"
DEADLINE_SECONDS = 60.0
NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
SENT = Outcome(OutcomeKind.ACCEPTED, NOON, accepted=Accepted("<r-1@x>"))
SENT_LINE = b'["r-1", ["accepted", "2026-01-31T12:00:00", null, null, ["<r-1@x>", null, null]]]\n'


@pytest.fixture
def place(tmp_path: Path) -> JournalDirectory:
    return JournalDirectory(tmp_path / "state")


def left(place: JournalDirectory) -> dict[str, Outcome | None]:
    """What a successor reads once the writer is gone."""
    found = place.take_over(BATCH)
    assert found is not None
    try:
        return found.read()
    finally:
        found.close()


def path_of(place: JournalDirectory) -> Path:
    return place.path / f"{BATCH}.journal"


def test_what_a_successor_reads(place: JournalDirectory) -> None:
    """A message that was started has no outcome, one whose answer came has it, one not started is not there."""
    written = place.create(BATCH, 3)
    written.started("r-1")
    written.ended("r-1", SENT)
    written.started("r-2")
    written.close()
    assert left(place) == {"r-1": SENT, "r-2": None}


def test_nothing_written(place: JournalDirectory) -> None:
    """The journal of a batch of which nothing was sent is empty."""
    place.create(BATCH, 3).close()
    assert left(place) == {}


# As a file on the disk of a machine has them, whatever version of the worker wrote it.
LINES = [
    (SENT, SENT_LINE),
    (
        Outcome(OutcomeKind.ACCEPTED, NOON, accepted=Accepted("<r-1@x>", "gmail-1", "thread-1")),
        b'["r-1", ["accepted", "2026-01-31T12:00:00", null, null, ["<r-1@x>", "gmail-1", "thread-1"]]]\n',
    ),
    (
        Outcome(OutcomeKind.REFUSED, NOON, "550 no such user"),
        b'["r-1", ["refused", "2026-01-31T12:00:00", "550 no such user", null, null]]\n',
    ),
    (
        Outcome(OutcomeKind.OPTED_OUT, NOON, "131050"),
        b'["r-1", ["opted out", "2026-01-31T12:00:00", "131050", null, null]]\n',
    ),
    (
        Outcome(OutcomeKind.DEFERRED, NOON, "429", 7.5),
        b'["r-1", ["put off", "2026-01-31T12:00:00", "429", 7.5, null]]\n',
    ),
    (
        Outcome(OutcomeKind.RECIPIENT_DEFERRED, NOON, "450 greylisted"),
        b'["r-1", ["put off alone", "2026-01-31T12:00:00", "450 greylisted", null, null]]\n',
    ),
    (
        Outcome(OutcomeKind.UNCONFIRMED, NOON, "no answer"),
        b'["r-1", ["unconfirmed", "2026-01-31T12:00:00", "no answer", null, null]]\n',
    ),
    (
        Outcome(OutcomeKind.NOT_SENT, NOON, "the template is gone"),
        b'["r-1", ["untouched", "2026-01-31T12:00:00", "the template is gone", null, null]]\n',
    ),
]


MORE = [
    (
        Outcome(
            OutcomeKind.REFUSED,
            NOON,
            "550 5.1.1",
            code="550 5.1.1",
            fault=FailureKind.ADDRESS,
            suppress_seconds=math.inf,
        ),
        b'["r-1", ["refused", "2026-01-31T12:00:00", "550 5.1.1", null, null], ["550 5.1.1", "address", "inf"]]\n',
    ),
    (
        Outcome(OutcomeKind.DEFERRED, NOON, "421", 7.5, code="421"),
        b'["r-1", ["put off", "2026-01-31T12:00:00", "421", 7.5, null], ["421", null, "0.0"]]\n',
    ),
    (
        Outcome(OutcomeKind.RECIPIENT_DEFERRED, NOON, "131049", 86400.0, code="131049", max_attempts=3),
        b'["r-1", ["put off alone", "2026-01-31T12:00:00", "131049", 86400.0, null], '
        b'["131049", null, "0.0", [3, null]]]\n',
    ),
    (
        Outcome(OutcomeKind.RECIPIENT_DEFERRED, NOON, "131056", 6.0, code="131056", delay_base=4.0),
        b'["r-1", ["put off alone", "2026-01-31T12:00:00", "131056", 6.0, null], '
        b'["131056", null, "0.0", [null, 4.0]]]\n',
    ),
]


@pytest.mark.parametrize(("outcome", "line"), MORE)
def test_what_was_added_stands_behind(place: JournalDirectory, outcome: Outcome, line: bytes) -> None:
    """The code of a reply and whose fault it is come after the entry, of which older versions read the rest."""
    written = place.create(BATCH, 1)
    written.ended("r-1", outcome)
    written.close()
    assert path_of(place).read_bytes().rstrip(b"\0") == line.replace(b", ", b",")
    assert left(place) == {"r-1": outcome}
    newer = line.replace(b'"address"', b'"novel"').replace(b"]]\n", b', "more"], "and more"]\n')
    path_of(place).write_bytes(newer.ljust(BYTES_FOR_A_RECIPIENT, b"\0"))
    assert left(place) == {"r-1": outcome._replace(fault=None)}


@pytest.mark.parametrize(("outcome", "line"), LINES)
def test_the_file_stays_readable(place: JournalDirectory, outcome: Outcome, line: bytes) -> None:
    """An older or a newer version of the worker reads what this one wrote, and the other way round.

    Older versions wrote spaces between the values.
    """
    written = place.create(BATCH, 1)
    written.ended("r-1", outcome)
    written.close()
    found = path_of(place).read_bytes().rstrip(b"\0")
    assert found.endswith(b"\n")
    assert json.loads(found) == json.loads(line)
    path_of(place).write_bytes(line.ljust(BYTES_FOR_A_RECIPIENT, b"\0"))
    assert left(place) == {"r-1": outcome}


def test_every_kind_of_outcome_has_a_line() -> None:
    """Rejected is stored as not sent: whichever version settles the batch, the recipient is released."""
    assert {outcome.kind for outcome, _ in LINES} | {OutcomeKind.REJECTED} == set(OutcomeKind)
    assert KIND_CODES[OutcomeKind.REJECTED] == KIND_CODES[OutcomeKind.NOT_SENT]


def test_a_kind_that_a_newer_version_wrote(place: JournalDirectory) -> None:
    """What this version cannot read counts as a message without a known answer: it may have arrived."""
    place.create(BATCH, 1).close()
    line = SENT_LINE.replace(b"accepted", b"bounced")
    path_of(place).write_bytes(line.ljust(BYTES_FOR_A_RECIPIENT, b"\0"))
    assert left(place) == {"r-1": None}


texts = st.text(max_size=60)
outcomes = st.builds(
    Outcome,
    kind=st.sampled_from(sorted(set(OutcomeKind) - {OutcomeKind.REJECTED})),
    at=st.datetimes(),
    reason=st.none() | texts,
    delay_seconds=st.none() | st.floats(0, allow_infinity=False),
    accepted=st.none() | st.builds(Accepted, st.none() | texts, st.none() | texts, st.none() | texts),
    code=st.text(max_size=20),
    fault=st.none() | st.sampled_from(FailureKind),
    suppress_seconds=st.floats(0),
    max_attempts=st.none() | st.integers(1, 99),
    delay_base=st.none() | st.floats(1, 9),
    account_seconds=st.none(),  # of the moment: a successor does not need it
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(texts, st.none() | outcomes, max_size=5))
def test_any_text_comes_back(place: JournalDirectory, said: dict[str, Outcome | None]) -> None:
    """Whatever ids and reasons hold (line ends, NUL, quotes, scripts), it reads back as it was."""
    written = place.create(BATCH, 5)
    for recipient_id, outcome in said.items():
        written.started(recipient_id)
        if outcome is not None:
            written.ended(recipient_id, outcome)
    written.close()
    assert left(place) == said
    path_of(place).unlink()


def test_threads_write_side_by_side(place: JournalDirectory) -> None:
    """Lines of many threads are not mixed up."""
    written = place.create(BATCH, 800)

    def answer(thread: int, number: int) -> Outcome:
        return Outcome(OutcomeKind.REFUSED, NOON, f"{thread}", float(number))

    def write(thread: int) -> None:
        for number in range(100):
            written.started(f"{thread}-{number}")
            written.ended(f"{thread}-{number}", answer(thread, number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = written.read()
    written.close()
    assert entries == {f"{each}-{n}": answer(each, n) for each in range(8) for n in range(100)}


def test_a_torn_last_line(place: JournalDirectory) -> None:
    """Of a line that was being stored when its writer died, the line before it is what counts."""
    written = place.create(BATCH, 2)
    written.started("r-1")
    written.ended("r-1", SENT)
    written.started("r-2")
    written.close()
    content = path_of(place).read_bytes()
    end = content.index(b"\0")
    torn = b'["r-2", ["accepted", "2026-01-31T12:'
    path_of(place).write_bytes(content[:end] + torn + content[end + len(torn) :])
    assert left(place) == {"r-1": SENT, "r-2": None}


@given(cut=st.integers(0, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_torn_anywhere(place: JournalDirectory, cut: int) -> None:
    """A journal cut at any byte never says more than was said, and never forgets a whole line."""
    written = place.create(BATCH, 1)
    for number in (1, 2):
        written.started(f"r-{number}")
        written.ended(f"r-{number}", SENT)
    written.close()
    content = path_of(place).read_bytes()
    kept = content[:cut].split(b"\n")[:-1]
    path_of(place).write_bytes(content[:cut] + bytes(len(content) - cut))
    entries = left(place)
    path_of(place).unlink()
    lines = [b'["r-1"]', b'["r-1",', b'["r-2"]', b'["r-2",']
    whole = sum(any(line.startswith(begin) for line in kept) for begin in lines)
    known = [{}, {"r-1": None}, {"r-1": SENT}, {"r-1": SENT, "r-2": None}, {"r-1": SENT, "r-2": SENT}]
    # a line that lacks only its line end may be read as well
    assert entries in known[whole : whole + 2]


def test_a_full_journal(place: JournalDirectory) -> None:
    """A journal that is full raises before anything is sent, and keeps all it has."""
    written = place.create(BATCH, 1)
    line = len('["r-100"]\n')
    stored = [f"r-{number}" for number in range(100, 100 + BYTES_FOR_A_RECIPIENT // line)]
    for recipient_id in stored:
        written.started(recipient_id)
    with pytest.raises(JournalUnwritable, match="cannot be written"):
        written.started("r-999")
    assert list(written.read()) == stored
    written.close()
    assert list(left(place)) == stored


def test_a_journal_full_to_the_last_byte(place: JournalDirectory) -> None:
    """A journal without a byte left can still be read, and takes nothing more."""
    place.create(BATCH, 1).close()
    line = b'["r-1"]\n'
    path_of(place).write_bytes(line + b'["' + b"x" * (BYTES_FOR_A_RECIPIENT - len(line) - 5) + b'"]\n')
    found = place.take_over(BATCH)
    assert found
    assert set(found.read()) == {"r-1", "x" * (BYTES_FOR_A_RECIPIENT - len(line) - 5)}
    with pytest.raises(JournalUnwritable):
        found.started("r-2")
    found.close()


def test_a_closed_journal(place: JournalDirectory) -> None:
    """A thread that comes late finds the journal closed, so it sends nothing."""
    written = place.create(BATCH, 1)
    written.close()
    written.close()
    with pytest.raises(JournalUnwritable):
        written.started("r-1")


def test_reserved_beforehand(place: JournalDirectory) -> None:
    """The space for all recipients is reserved on the disk when the batch is claimed, not while it is sent."""
    written = place.create(BATCH, 100)
    status = path_of(place).stat()
    written.close()
    assert status.st_size >= 100 * BYTES_FOR_A_RECIPIENT
    assert status.st_blocks * 512 >= status.st_size


def test_a_batch_has_one_journal(place: JournalDirectory) -> None:
    """The settled batch's journal is removed; nobody can lock it any more."""
    written = place.create(BATCH, 1)
    written.remove()
    assert list(place.path.glob("*.journal")) == []
    with pytest.raises(FileNotFoundError):
        place.take_over(BATCH)


def test_used_again(place: JournalDirectory) -> None:
    """The file of a settled batch becomes the journal of the next one, empty, and is found by its new name only."""
    first = place.create(BATCH, 3)
    first.started("r-1")
    inode = path_of(place).stat().st_ino
    first.remove()
    [spare] = place.path.glob("*.spare")
    assert spare.read_bytes().strip(b"\0") == b""
    with closing(place.create(OTHER_BATCH, 2)) as second:
        assert second.read() == {}
        second.started("r-2")
        assert second.read() == {"r-2": None}
        with pytest.raises(JournalUnwritable):
            first.ended("r-1", SENT)  # a thread that comes late
        first.remove()
        assert second.read() == {"r-2": None}
        path = place.path / f"{OTHER_BATCH}.journal"
        assert path.stat().st_ino == inode
        assert time.time() - path.stat().st_mtime < DEADLINE_SECONDS
    with pytest.raises(FileNotFoundError):
        place.take_over(BATCH)


def test_a_larger_batch_needs_a_new_file(place: JournalDirectory) -> None:
    place.create(BATCH, 1).remove()
    with closing(place.create(OTHER_BATCH, 2)):
        assert (place.path / f"{OTHER_BATCH}.journal").stat().st_size == 2 * BYTES_FOR_A_RECIPIENT


def test_few_files_are_kept(place: JournalDirectory) -> None:
    """However many campaigns were sent side by side; when the program ends, none is left."""
    batches = [place.create(f"{number:036}", 1) for number in range(3 * journal.SPARE_FILES)]
    for batch in batches:
        batch.remove()
    assert len(list(place.path.glob("*.spare"))) == journal.SPARE_FILES
    assert journals(place) == []
    place.close()
    assert [path.name for path in place.path.iterdir()] == ["id"]


def test_a_kept_file_that_somebody_deleted(place: JournalDirectory) -> None:
    place.create(BATCH, 1).remove()
    [spare] = place.path.glob("*.spare")
    spare.unlink()
    with closing(place.create(OTHER_BATCH, 1)) as written:
        written.started("r-1")
        assert written.read() == {"r-1": None}
    assert journals(place) == [f"{OTHER_BATCH}.journal"]


def test_kept_files_of_the_dead_and_the_living(place: JournalDirectory, tmp_path: Path) -> None:
    """What a dead process kept is removed at a start, what a living one keeps stays."""
    place.create(BATCH, 1).remove()
    (place.path / f"{OTHER_BATCH}.spare").write_bytes(bytes(BYTES_FOR_A_RECIPIENT))
    place.sweep_spare()
    assert [path.stem for path in place.path.glob("*.spare")] == [BATCH]


def test_renamed_while_a_successor_opened_it(place: JournalDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened a batch's journal just before it became another one's, and then gets its lock, has no journal."""
    written = place.create(BATCH, 1)
    really = fcntl.flock

    def lock(descriptor: int, how: int) -> None:
        if renames:
            renames.pop()
            written.remove()
            place.create(OTHER_BATCH, 1).close()  # its writer dies
        really(descriptor, how)

    renames = [True]
    monkeypatch.setattr(fcntl, "flock", lock)
    with pytest.raises(FileNotFoundError):
        place.take_over(BATCH)
    found = place.take_over(OTHER_BATCH)
    assert found
    found.close()


def test_nobody_else_reads_it(place: JournalDirectory) -> None:
    """Journals hold ids of customers: only the worker's user may enter."""
    place.create(BATCH, 1).close()
    assert place.path.stat().st_mode & 0o077 == 0
    assert path_of(place).stat().st_mode & 0o077 == 0


WRITER = """
import signal, sys
from datetime import datetime
from pathlib import Path
from worker.campaigns.journal import JournalDirectory
from worker.messages import Accepted
from worker.sending.outcomes import Outcome, OutcomeKind
written = JournalDirectory(Path(sys.argv[1])).create(sys.argv[2], 10)
written.started("r-1")
written.ended("r-1", Outcome(OutcomeKind.ACCEPTED, datetime(2026, 1, 31, 12), accepted=Accepted("<r-1@x>")))
written.started("r-2")
print("written", flush=True)
signal.pause()
"""


@pytest.fixture
def writer(place: JournalDirectory) -> Iterator[subprocess.Popen[str]]:
    """Another process that sends a batch: one message accepted, one on the wire."""
    argv = [sys.executable, "-c", WRITER, str(place.path.parent), BATCH]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def journals(place: JournalDirectory) -> list[str]:
    return [path.name for path in place.path.glob("*.journal")]


def grow_old(path: Path) -> None:
    long_ago = time.time() - 2 * journal.OLD_SECONDS
    os.utime(path, (long_ago, long_ago))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_living_frozen_dead(place: JournalDirectory, writer: subprocess.Popen[str]) -> None:
    """A journal cannot be locked while its writer lives, frozen or not; once that is killed all of it is known."""
    assert place.take_over(BATCH) is None
    writer.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while state_of(writer.pid) != "T":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert place.take_over(BATCH) is None
    writer.kill()
    writer.wait(DEADLINE_SECONDS)
    assert left(place) == {"r-1": SENT, "r-2": None}


def test_one_successor(place: JournalDirectory, writer: subprocess.Popen[str]) -> None:
    """Of two successors one gets the journal, until it closes it."""
    writer.kill()
    writer.wait(DEADLINE_SECONDS)
    first = place.take_over(BATCH)
    assert first
    assert place.take_over(BATCH) is None
    first.close()
    second = place.take_over(BATCH)
    assert second
    second.remove()


def test_never_seen_unlocked(place: JournalDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal can be found only once it is locked: no successor can lock it before its writer."""
    seen: list[list[str]] = []
    really = fcntl.flock

    def lock(descriptor: int, how: int) -> None:
        seen.append(journals(place))
        really(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    place.create(BATCH, 1).close()
    assert seen == [[]]


@pytest.mark.parametrize("where", ["file/state", "file"])
def test_unusable_state_dir(tmp_path: Path, where: str) -> None:
    """A STATE_DIR that cannot be created ends the program with one line that says which and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError) as caught:
        JournalDirectory(tmp_path / where)
    line = str(caught.value)
    assert line.startswith(f"STATE_DIR is {str(tmp_path / where)!r}, which cannot be used (")
    assert line.endswith("name a directory on a local disk that this user may write")
    assert "\n" not in line


AS_NOBODY = """
import os, sys
from pathlib import Path
from worker.errors import SettingsError
from worker.campaigns.journal import JournalDirectory
os.chdir("/")
os.setgid(65534)
os.setuid(65534)
try:
    JournalDirectory(Path(sys.argv[1]))
except SettingsError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_somebody_elses_state_dir(place: JournalDirectory) -> None:
    """A directory that exists but belongs to another user is refused when the program starts, not at a claim."""
    state = place.path.parent
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(state)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"STATE_DIR is {str(state)!r}, which cannot be used (Permission denied)")


def test_machines_differ(tmp_path: Path) -> None:
    """A directory keeps its name over restarts, and another one has another name, whatever the host is called."""
    here, there = JournalDirectory(tmp_path / "a"), JournalDirectory(tmp_path / "b")
    assert here.machine == JournalDirectory(tmp_path / "a").machine
    assert here.machine != there.machine


def test_a_new_boot_is_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a boot the journals written before it do not count: a power cut may have taken their last lines."""
    before = JournalDirectory(tmp_path).machine
    monkeypatch.setattr(journal, "boot_id", lambda: "another-boot")
    assert JournalDirectory(tmp_path).machine != before
    assert JournalDirectory(tmp_path).machine.partition("/")[2] == before.partition("/")[2]


def test_two_start_at_once(tmp_path: Path) -> None:
    """Processes that meet in a new directory agree on its name."""
    barrier = threading.Barrier(8)
    names = []

    def start() -> None:
        barrier.wait(DEADLINE_SECONDS)
        names.append(JournalDirectory(tmp_path / "state").machine)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert len(names) == 8
    assert len(set(names)) == 1
    assert [path.name for path in (tmp_path / "state" / "journals").iterdir()] == ["id"]


def test_abandoned(place: JournalDirectory) -> None:
    """Only an old journal counts as abandoned: the claim of a young one may still be in progress in the database."""
    place.create(BATCH, 1).close()
    assert place.abandoned() == []
    grow_old(path_of(place))
    assert place.abandoned() == [BATCH]


def test_drafts(place: JournalDirectory) -> None:
    """The draft of a process that died while it created a journal is no journal, and is removed when it is old."""
    young, old = place.path / "young.new", place.path / "old.new"
    for draft in (young, old):
        draft.write_bytes(b"")
    grow_old(old)
    assert place.abandoned() == []
    assert young.exists()
    assert not old.exists()


def test_an_impossible_journal(place: JournalDirectory) -> None:
    """A journal that cannot be created raises before anything is claimed."""
    taken: Journal = place.create(BATCH, 1)
    (place.path / f"{BATCH}.new").write_bytes(b"")
    with pytest.raises(JournalUnwritable, match="cannot be created"):
        place.create(BATCH, 1)
    taken.close()


@pytest.mark.parametrize("text", ["x" * 6000, "\u0001" * 6000, "\U0001f600" * 6000])
def test_long_texts_of_providers(place: JournalDirectory, text: str) -> None:
    """However much a provider answers, an entry has its room: the outcome stays, with as much of the rest as fits."""
    people = [f"r-{number}" for number in range(20)]
    with closing(place.create(BATCH, len(people))) as written:
        for person in people:
            written.started(person)
            accepted = Accepted(text, text, text)
            written.ended(person, Outcome(OutcomeKind.ACCEPTED, AT, text, accepted=accepted))
        found = written.read()
    assert set(found) == set(people)
    kinds = {outcome.kind for outcome in found.values() if outcome}
    assert kinds == {OutcomeKind.ACCEPTED}
    assert all(outcome and outcome.accepted for outcome in found.values())


def test_long_ids_of_recipients(place: JournalDirectory) -> None:
    """The CRM's ids may have any length; they are found again with the help of the batch's list."""
    people = [f"{number}" + "r" * 2500 for number in range(20)]
    with closing(place.create(BATCH, len(people))) as written:
        for person in people:
            written.started(person)
            written.ended(person, Outcome(OutcomeKind.REFUSED, AT, "550 no such user"))
        found = written.read(people)
    assert found == dict.fromkeys(people, Outcome(OutcomeKind.REFUSED, AT, "550 no such user"))
