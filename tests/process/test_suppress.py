"""bin/suppress: what an operator adds, removes, imports, lists and exports, and an import that is interrupted."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from workers import PROJECT, wait_for

from sandbox.crm import Crm
from worker.runtime.counter_readings import read_all

MANY = 1_000_000
SMALL_KB = 100_000  # a program that has imported psycopg2 and redis has 40 MB
BOM = b"\xef\xbb\xbf"
NUMBERS = ["919876543210", "919876543211", "919876543212"]


class Suppress:
    """The program, for the list of calls of the demo tenant unless the test says otherwise."""

    def __init__(self, environment: dict[str, str], crm: Crm) -> None:
        self.environment = environment
        self.crm = crm
        self.running: list[subprocess.Popen[bytes]] = []

    def arguments(self, command: str, *more: str, tenant: str | None = None, channel: str = "call") -> list[str]:
        program = str(PROJECT / "bin" / "suppress")
        return [program, command, "--tenant", tenant or self.crm.tenant_id, "--channel", channel, *more]

    def __call__(
        self, command: str, *more: str, text: bytes = b"", tenant: str | None = None, channel: str = "call"
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.arguments(command, *more, tenant=tenant, channel=channel),
            input=text, env=self.environment, cwd=PROJECT, capture_output=True, timeout=300, check=False,
        )  # fmt: skip

    def start(self, command: str, *more: str) -> subprocess.Popen[bytes]:
        """In a process group of its own, with pipes."""
        self.running.append(
            subprocess.Popen(
                self.arguments(command, *more),
                env=self.environment, cwd=PROJECT, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return self.running[-1]

    def listed(self, tenant: str | None = None, channel: str = "call") -> list[str]:
        statement = "SELECT address FROM worker.suppression WHERE tenant_id = %s AND channel = %s ORDER BY 1"
        return [address for (address,) in self.crm.execute(statement, (tenant or self.crm.tenant_id, channel))]


@pytest.fixture
def program(environment: dict[str, str], crm: Crm) -> Iterator[Suppress]:
    made = Suppress(environment, crm)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_add_list_and_remove(program: Suppress) -> None:
    """However the number is written; what is on the list is told, and nothing is an error the second time."""
    done = program("add", "+91 98765 43210", "9876543211", "--reason", "asked on the phone", "--until", "2999-01-31")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"2 added, 0 on the list already.\n")
    assert program("add", "09876543210").stderr == b"1 added, 0 on the list already.\n", "for ever is longer"
    assert program("add", "09876543210").stderr == b"0 added, 1 on the list already.\n"
    shown = program("list").stdout.decode()
    assert [line.split()[:2] for line in shown.splitlines()] == [[each, "operator"] for each in NUMBERS[:2]]
    assert "until 2999-01-31" in shown.splitlines()[1]
    assert "asked on the phone" in shown.splitlines()[1]
    assert program("list", "98765-43211").stdout.decode().split()[0] == NUMBERS[1]
    done = program("remove", "98765-43210", "9000000000")
    assert (done.returncode, done.stderr) == (0, b"1 taken off the list, 1 not on it.\n")
    assert program.listed() == [NUMBERS[1]]


def test_whoever_unsubscribed_again_is_still_bounced(program: Suppress) -> None:
    """One source is removed, the others stay."""
    for source in ("unsubscribe", "bounce"):
        assert program("add", "asha@x.example", "--source", source, channel="email").returncode == 0
    assert program("remove", "Asha@x.example", "--source", "unsubscribe", channel="email").returncode == 0
    assert program("list", channel="email").stdout.decode().split()[:2] == ["asha@x.example", "bounce"]


def test_what_a_campaigns_bounces_did_is_taken_back(program: Suppress, crm: Crm) -> None:
    """As after a relay that knew no address at all. Other sources, campaigns and tenants stay, and other channels."""
    other = crm.add_tenant("Other Traders")
    entries = [
        (crm.tenant_id, "email", f"asha{number}@x.example", "bounce", "c-1") for number in range(3)
    ] + [
        (crm.tenant_id, "email", "left@x.example", "unsubscribe", "c-1"),
        (crm.tenant_id, "email", "earlier@x.example", "bounce", "c-0"),
        (crm.tenant_id, "email", "operator@x.example", "bounce", None),
        (other, "email", "theirs@x.example", "bounce", "c-1"),
        (crm.tenant_id, "whatsapp", "919876543210", "bounce", "c-1"),
    ]  # fmt: skip
    for tenant, channel, address, source, campaign in entries:
        crm.execute(
            "INSERT INTO worker.suppression (tenant_id, channel, address, reason, source, campaign_id, created_at) "
            "VALUES (%s, %s, %s, 'no such user', %s, %s, now())",
            (tenant, channel, address, source, campaign),
        )
    for wrong in (["--campaign", "c-1"], ["--source", "bounce"], ["asha0@x.example", "--campaign", "c-1"]):
        assert program("remove", *wrong, channel="email").returncode == 2
    done = program("remove", "--campaign", "c-1", "--source", "bounce", channel="email")
    assert (done.returncode, done.stderr) == (0, b"3 taken off the list.\n")
    assert program.listed(channel="email") == ["earlier@x.example", "left@x.example", "operator@x.example"]
    assert (program.listed(other, "email"), program.listed(channel="whatsapp")) == (["theirs@x.example"], NUMBERS[:1])
    done = program("remove", "--campaign", "c-1", "--source", "bounce", channel="email")
    assert done.stderr == b"0 taken off the list.\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["add", "9876543210", "12"], 1, "12: not an address for call. Nothing was done."),
        (["import", "/no/such/file.csv"], 1, "No such file"),
        (["add", "9876543210", "--until", "2001-01-01"], 2, "a time to come"),
        (["list", "--limit", "0"], 2, "a number from 1"),
        (["import", "-", "--column", "mobile"], 1, "There is no column 'mobile'"),
    ],
)
def test_what_is_refused_changes_nothing(program: Suppress, arguments: list[str], status: int, said: str) -> None:
    done = program(arguments[0], *arguments[1:], text=b"number\n9876543210\n")
    assert done.returncode == status
    assert said in done.stderr.decode()
    assert program.listed() == []


def test_a_tenant_that_does_not_exist(program: Suppress) -> None:
    """Its list would be one that nobody looks at."""
    done = program("import", "-", text=b"9876543210\n", tenant="no-such-tenant")
    assert (done.returncode, done.stderr) == (1, b"There is no tenant no-such-tenant: --tenant is its id.\n")
    assert program.listed("no-such-tenant") == []


@pytest.mark.parametrize(
    ("text", "column"),
    [
        (b"9876543210\n9876543211\n9876543212\n", None),
        (b"9876543210\r\n9876543211\r\n9876543212", None),
        (b"9876543210\r9876543211\r9876543212\r", None),
        (BOM + b"Mobile number\r\n9876543210\r\n+91 98765-43211\r\n00919876543212\r\n", None),
        (b"\n\n,,\n9876543210,Asha\n\n9876543211,\"Rao, B\"\n9876543212\n", None),
        (b'name;mobile\n"Asha; B";"98765 43210"\nRao;9876543211\nDas;9876543212\n', "Mobile"),
        ("नाम\tमोबाइल\nआशा\t९८७६५४३२१०\nराव\t9876543211\nदास\t9876543212\n".encode(), "2"),
        (b"9876543210\n9876543210\n09876543210\n9876543211\n9876543212\n9876543212\n", "1"),
        (b"t\xe9l\xe9\n9876543210\n9876543211\n9876543212\n", None),
    ],
)  # fmt: skip
def test_files_of_all_kinds(program: Suppress, text: bytes, column: str | None) -> None:
    """Line ends, a byte order mark, a heading, blank lines, quotation marks, other delimiters, repeated numbers."""
    done = program("import", "-", *(["--column", column] if column else []), text=text)
    assert done.returncode == 0, done.stderr
    assert program.listed() == NUMBERS
    assert b" 3 addresses: 3 added, 0 on the list already." in done.stderr
    again = program("import", "-", *(["--column", column] if column else []), text=text)
    assert (again.returncode, b" 0 added, 3 on the list already." in again.stderr) == (0, True)


def test_bad_lines_are_left_out_and_named(program: Suppress, redis_url: str) -> None:
    """By their numbers in the file, the first twenty of them; what the others have is imported, and counted."""
    bad = [f"no number {place}" for place in range(25)]
    lines = ["number", "9876543210", '"never closed', *bad, "", "9876543211", "x\\N\t\\.", "9876543212"]
    done = program("import", "-", text="\r\n".join(lines).encode())
    said = done.stderr.decode()
    assert done.returncode == 3
    assert program.listed() == NUMBERS
    assert "30 lines, 3 addresses: 3 added" in said
    assert "27 have none." in said
    assert "  line 3: never closed\n  line 4: no number 0\n" in said
    assert "  ... and 7 more" in said
    with redis.Redis.from_url(redis_url) as client:
        [counted] = [each for each in read_all(client).counters if each.metric == "suppressions_total"]
    assert (counted.labels, counted.value) == ({"channel": "call", "source": "import"}, 3)


@pytest.mark.parametrize("text", ["9876543210\n".encode("utf-16"), b"9876543210\n" + b"9" * 100_000])
def test_what_is_no_csv_file(program: Suppress, text: bytes) -> None:
    done = program("import", "-", text=text)
    assert (done.returncode, program.listed()) == (1, [])
    assert done.stderr.startswith((b"The file is UTF-16", b"Line 2 is longer"))


def test_a_list_is_exported_and_imported_elsewhere(program: Suppress, tmp_path: Path) -> None:
    """The file is readable by its owner only; what looks like a formula is none; ended entries are left out."""
    other = program.crm.add_tenant("Other Traders")
    program("add", *NUMBERS, "--reason", "=1+1")
    program.crm.execute("UPDATE worker.suppression SET until = '2001-01-01' WHERE address = %s", (NUMBERS[2],))
    file = tmp_path / "list.csv"
    assert program("export", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob("list*")] == [file.name]
    assert file.read_bytes() == program("export", "-").stdout
    heading, *entries = file.read_text("utf-8").splitlines()
    assert heading == "address,source,reason,campaign,code,until,since"
    assert [entry.split(",")[:3] for entry in entries] == [[each, "operator", "'=1+1"] for each in NUMBERS[:2]]
    assert program("import", str(file), tenant=other).returncode == 0
    assert program.listed(other) == NUMBERS[:2]


def test_an_interrupted_export_leaves_the_old_file(program: Suppress, tmp_path: Path) -> None:
    """A connection that is refused here, as one that breaks later."""
    file = tmp_path / "list.csv"
    file.write_text("old\n")
    program.environment["DATABASE_URL"] = "postgresql://u:p@127.0.0.1:9/none"
    done = program("export", str(file))
    assert (done.returncode, file.read_text()) == (1, "old\n")
    assert done.stderr.startswith(b"PostgreSQL does not answer")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("inserting", [False, True])
def test_an_interrupted_import_changes_nothing(program: Suppress, number: signal.Signals, inserting: bool) -> None:
    """While it reads the file, and while PostgreSQL inserts it; the next import does all of it."""
    crm = program.crm
    program("add", NUMBERS[0])
    process = program.start("import", "-")
    assert process.stdin
    process.stdin.write("".join(f"{9_000_000_000 + place}\n" for place in range(100_000)).encode())
    process.stdin.flush()
    if inserting:
        # an uncommitted entry, which the import waits for
        crm.execute("BEGIN")
        crm.execute("SELECT worker.suppress(%s, 'call', '9000099999', 'x', 'import')", (crm.tenant_id,))
        process.stdin.close()
        process.stdin = None
        state = "wait_event_type = 'Lock'"
    else:
        state = "query LIKE 'COPY%%'"
    activity = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crm-worker suppress' AND {state}"
    wait_for(lambda: crm.value(activity), "the import has come so far")
    process.send_signal(number)
    if inserting and number is signal.SIGINT:
        crm.execute("ROLLBACK")  # Python sees the signal when PostgreSQL has answered
    _, said = process.communicate(timeout=60)
    if inserting and number is not signal.SIGINT:
        crm.execute("ROLLBACK")
    assert process.returncode in (1, -number)
    if number is signal.SIGINT:
        assert b"Stopped. Nothing was changed." in said
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'crm-worker suppress'"
    wait_for(lambda: crm.value(gone), "PostgreSQL has ended the session")
    assert program.listed() == NUMBERS[:1]
    assert program("import", "-", text=b"9876543211\n9876543212\n").returncode == 0
    assert program.listed() == NUMBERS


def test_a_million_numbers_in_little_memory(program: Suppress, tmp_path: Path) -> None:
    """The program's memory does not depend on the number of lines, neither when it imports nor when it exports."""
    file, back = tmp_path / "dnd.csv", tmp_path / "back.csv"
    with file.open("w") as stream:
        stream.writelines(f"{9_000_000_000 + place}\n" for place in range(MANY))
    for command, path in (("import", file), ("export", back)):
        assert memory_kb(program.arguments(command, str(path)), program.environment) < SMALL_KB
    assert len(program.listed()) == MANY
    with back.open() as stream:
        assert sum(1 for _ in stream) == MANY + 1


_MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def memory_kb(arguments: list[str], environment: dict[str, str]) -> int:
    """The most memory that a program had, which must succeed.

    It is started by a small process: the kernel counts what its parent has for a moment as its own.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *arguments], env=environment, stdout=subprocess.PIPE, check=True
    )
    return int(done.stdout.split()[-1])


def test_help_says_what_the_commands_do(program: Suppress) -> None:
    """With what they take, their limits and their exit statuses, and without any setting."""
    program.environment = {"PATH": os.defpath}
    for command, words in (("import", ("one transaction", "million", "--column")), ("export", ("standard output",))):
        done = program(command, "--help")
        assert done.returncode == 0
        assert all(word in done.stdout.decode() for word in words)
