"""The table of programs agrees with supervisord's configuration, bin/, the modules, the settings and /health."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from configparser import RawConfigParser, SectionProxy
from pathlib import Path

import pytest

from worker.registry import DATABASE_USERS, JOB_PRIORITY, JOBS, LOCKS, PROGRAMS, REDIS_USERS, SUPERVISED, ProgramSpec
from worker.runtime.environment_variable import EVERY_PROGRAM, EnvironmentVariable
from worker.runtime.program import BAD_SETTINGS, SUPERVISOR_START_SECONDS
from worker.runtime.settings import variables
from worker.web.app import HEALTH_JOBS, SUMMARY_JOBS

PROJECT = Path(__file__).resolve().parents[2]
BIN = PROJECT / "bin"
LISTENERS = {"watchdog"}  # event listeners of supervisord
WITHOUT_ROW = {"status"}  # bin/status reads the settings of web
NAMES = {each.name for each in PROGRAMS}


@pytest.fixture(scope="module")
def conf() -> RawConfigParser:
    parser = RawConfigParser(inline_comment_prefixes=(";",))
    parser.read(PROJECT / "conf" / "supervisord.worker.conf")
    return parser


def section(conf: RawConfigParser, name: str) -> SectionProxy:
    return conf[f"{'eventlistener' if name in LISTENERS else 'program'}:{name}"]


def test_supervisord_runs_the_programs_of_the_table(conf: RawConfigParser) -> None:
    """All that have a priority and no others; without groups, so that `supervisorctl restart campaign` works."""
    sections = [each.partition(":") for each in conf.sections()]
    assert {name for kind, _, name in sections if kind in ("program", "eventlistener")} == SUPERVISED.keys()
    assert {name for kind, _, name in sections if kind == "eventlistener"} == LISTENERS
    assert not [kind for kind, _, _ in sections if kind in ("group", "fcgi-program")]


@pytest.mark.parametrize("spec", SUPERVISED.values(), ids=lambda spec: spec.name)
def test_a_program_under_supervisord(conf: RawConfigParser, spec: ProgramSpec) -> None:
    """It has its command, priority and logs, waits longer than the grace time, and ends its whole process group."""
    program = section(conf, spec.name)
    assert program["command"] == f'"%(here)s/../bin/{spec.name}"'
    assert program.getint("priority") == spec.priority
    assert program["autorestart"] == "unexpected"
    assert set(program["exitcodes"].split(",")) == {"0", str(BAD_SETTINGS)}, "bad settings are not retried"
    assert program.getfloat("startsecs") < SUPERVISOR_START_SECONDS
    assert program.getfloat("stopwaitsecs") > grace_seconds()
    assert program.getboolean("stopasgroup")
    assert program.getboolean("killasgroup")
    assert program["stderr_logfile"] == f"/var/log/supervisor/{spec.name}-error.log"
    assert program.getint("stderr_logfile_backups") > 0
    if spec.name in LISTENERS:
        assert program["stdout_logfile"] == "NONE", "its output is the protocol of event listeners"
    else:
        assert program["stdout_logfile"] == f"/var/log/supervisor/{spec.name}.log"
        assert program.getint("stdout_logfile_backups") > 0


def grace_seconds() -> float:
    return float(next(each.value({}) for each in variables() if each.name == "SHUTDOWN_GRACE_SECONDS"))


@pytest.mark.parametrize("name", SUPERVISED)
def test_all_programs_have_the_same_options(conf: RawConfigParser, name: str) -> None:
    """Except for what names the program."""
    differ = {"command", "priority", "stdout_logfile", "stderr_logfile"}
    if name in LISTENERS:
        differ |= {"events", "buffer_size", "stdout_logfile_maxbytes", "stdout_logfile_backups"}
    if SUPERVISED[name].many:  # started by hand, and as many as the operator writes
        differ |= {"autostart", "process_name", "numprocs"}
    program, usual = dict(section(conf, name)), dict(section(conf, "campaign"))
    assert {key: value for key, value in program.items() if key not in differ} == {
        key: value for key, value in usual.items() if key not in differ
    }


def test_the_jobs_stop_together_and_before_their_servers(conf: RawConfigParser) -> None:
    """Jobs have one priority, from which on supervisord's extension stops programs at the same time."""
    assert {each.priority for each in JOBS.values()} == {JOB_PRIORITY}
    assert conf.getint("rpcinterface:shutdown", "together_from") == JOB_PRIORITY
    assert {name for name, each in SUPERVISED.items() if (each.priority or 0) < JOB_PRIORITY} == {"qdrant"}


def scripts() -> Iterator[tuple[str, str]]:
    """Each script of bin/ that runs a module of the worker, and the module."""
    for path in BIN.iterdir():
        found = re.search(r'^exec .*/python" -m (worker\.\S+) "\$@"$', path.read_text("utf-8"), flags=re.MULTILINE)
        if found:
            yield path.name, found[1]


def test_bin_has_a_script_for_each_program() -> None:
    assert {name for name, _ in scripts()} == NAMES | WITHOUT_ROW


@pytest.mark.parametrize(("name", "module"), list(scripts()))
def test_a_script_runs_the_module_of_its_name(name: str, module: str) -> None:
    assert os.access(BIN / name, os.X_OK)
    assert module == f"worker.{name.replace('-', '_')}"
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("spec", PROGRAMS, ids=lambda spec: spec.name)
def test_help_works_without_settings_and_names_the_servers(spec: ProgramSpec) -> None:
    """And --once is an argument of jobs only."""
    argv = [BIN / spec.name, "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.defpath})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: bin/{spec.name} ")
    assert ("DATABASE_URL" in done.stdout) == spec.database
    if spec.name != "migrate":  # which lists no variables but the one that it uses
        assert ("REDIS_URL" in done.stdout) == spec.redis
    assert ("[--once]" in done.stdout) == (spec.name in JOBS or spec.many)


@pytest.mark.parametrize("variable", variables(), ids=lambda variable: variable.name)
def test_a_setting_names_programs_of_the_table(variable: EnvironmentVariable) -> None:
    """A misspelt name would be a variable that nobody reads."""
    readers, required = variable.programs, variable.required_by
    if readers != EVERY_PROGRAM:
        assert readers
        assert set(readers.split()) <= NAMES
        assert set(required.split()) <= set(readers.split())
    assert set(required.split()) <= NAMES


def test_derived_names() -> None:
    """In the form that the settings take, and without doubles."""
    assert len(NAMES) == len(PROGRAMS)
    assert set(DATABASE_USERS.split()) == {each.name for each in PROGRAMS if each.database}
    assert set(REDIS_USERS.split()) == {each.name for each in PROGRAMS if each.redis}
    assert LOCKS.keys() == JOBS.keys()
    assert len(set(LOCKS.values())) == len(LOCKS)
    assert all(each.purpose for each in JOBS.values())
    assert {name for name, each in SUPERVISED.items() if not each.worker_only} == {"qdrant", "web"}


def test_locks_and_names_that_others_know() -> None:
    """An older worker and operators know the locks, the CRM's monitoring the names in /health and in the summary."""
    assert LOCKS == {
        "campaign": "campaign-scheduler",
        "reminders": "lead-reminder-scheduler",
        "calls": "call-scheduler",
        "call-cleanup": "call-cleanup",
        "trial": "trial-expiration",
        "bounces": "bounces",
        "knowledge": "knowledge",
    }
    assert HEALTH_JOBS == {
        "campaign": "campaign",
        "leadReminder": "reminders",
        "callScheduler": "calls",
        "callCleanup": "call-cleanup",
        "trialExpiration": "trial",
    }
    assert SUMMARY_JOBS == {"campaign": "campaign", "reminder": "reminders", "call": "calls"}
