"""A real supervisord with the production watchdog and small programs that tests make up."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from configparser import RawConfigParser
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy

import redis
from supervisor.xmlrpc import SupervisorTransport
from workers import PROJECT, wait_for

from sandbox.servers import Child
from worker.runtime.counter_readings import CounterReadings, read_all

# bin/watchdog with limits short enough for a test
DRIVER = """
import sys
from worker import watchdog
from worker.runtime import program
from worker.supervision.limits import WatchdogLimits
limits = WatchdogLimits(min_silence_seconds=1, min_observed_seconds=1, restart_pause_seconds=60,
                        fatal_pause_seconds=1, fatal_pause_limit_seconds=5)
sys.exit(program.run_main(lambda: watchdog.listen(limits)))
"""


def process_info(folder: Path, program: str) -> dict[str, Any]:
    """What the supervisord with its socket in ``folder`` reports about a program; empty while it does not answer.

    Starting supervisorctl each time would slow down the programs that the test waits for.
    """
    with closing(SupervisorTransport(serverurl=f"unix://{folder}/supervisor.sock")) as transport:
        try:
            return dict(ServerProxy("http://127.0.0.1", transport).supervisor.getProcessInfo(program))  # type: ignore[arg-type]
        except (OSError, HTTPException, Error):
            return {}


def production_conf() -> RawConfigParser:
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(PROJECT / "conf" / "supervisord.worker.conf")
    return conf


def moved(conf: RawConfigParser, folder: Path) -> None:
    """The socket and all logs are in ``folder``, the programs are this project's."""
    for section in conf.sections():
        for key, value in conf.items(section):
            placed = value.replace("/run/crm-worker", str(folder)).replace("%(here)s/..", str(PROJECT))
            conf[section][key] = placed.replace("/var/log/supervisor", str(folder))


class Supervised:
    """supervisord, its programs and their logs."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        programs: Mapping[str, str],
        *,
        quick: bool = True,
        options: Mapping[str, str] | None = None,
        own_options: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """``programs``: name -> a Python script, or a command that begins with a slash.

        They have the options of the production jobs, except for ``options``, and ``own_options`` by their names.
        ``quick``: the watchdog has short limits and a tick every five seconds, instead of the production ones.
        """
        self.folder = folder
        self._conf = folder / "supervisord.conf"
        self._environment = dict(environment)
        conf = self._configuration(programs, options or {})
        for name, own in (own_options or {}).items():
            conf[f"program:{name}"].update(own)
        if quick:
            listener = {"command": self._script("watchdog", DRIVER), "events": "PROCESS_STATE,TICK_5"}
            conf["eventlistener:watchdog"].update(listener)
        with self._conf.open("w", encoding="utf-8") as file:
            conf.write(file)
        argv = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._conf)]
        self.child = Child(argv, folder / "out.log", at_parents_death="TERM", environment=self._environment)
        self.child.wait_until(lambda: self.state("watchdog") != "", "supervisord")

    def control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._conf), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=self._environment)

    def state(self, program: str) -> str:
        """The state's name; empty while supervisord does not answer."""
        return str(process_info(self.folder, program).get("statename", ""))

    def wait_for_state(self, program: str, state: str) -> None:
        wait_for(lambda: self.state(program) == state, f"{program} is {state}\n{self.log('watchdog-error.log')}")

    def pid(self, program: str) -> int:
        """0: it has no process."""
        return int(process_info(self.folder, program).get("pid", 0))

    def signal(self, program: str, number: signal.Signals) -> int:
        """Sends a signal to a program that runs; returns its pid."""
        pid = self.pid(program)
        assert pid, f"{program} has no process"  # and 0 would be all processes of this group
        os.kill(pid, number)
        return pid

    def kill(self, program: str) -> None:
        """kill -9; waits until supervisord has noticed: until then it reports that the program runs."""
        killed = self.signal(program, signal.SIGKILL)
        wait_for(lambda: self.pid(program) != killed, f"supervisord notices that {program} is dead")

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text("utf-8") if path.exists() else ""

    def logged(self, text: str, name: str = "watchdog-error.log") -> int:
        """How many lines of a log hold ``text``."""
        return sum(text in line for line in self.log(name).splitlines())

    def wait(self, seconds: float = 40.0) -> int:
        """Waits until supervisord ends by itself; returns its exit status."""
        return self.child.wait(seconds)

    def stop(self) -> None:
        if self.child.running:
            self.child.end(signal.SIGTERM, 40)
        print("".join(f"--- {name}\n{self.log(name)}" for name in ("supervisord.log", "watchdog-error.log")))  # noqa: T201

    def _configuration(self, programs: Mapping[str, str], options: Mapping[str, str]) -> RawConfigParser:
        conf = production_conf()
        usual = dict(conf["program:campaign"])
        for section in conf.sections():
            if section.startswith("program:"):
                conf.remove_section(section)
        for name, text in programs.items():
            own = {key: value.replace("campaign", name) for key, value in usual.items() if "logfile" in key}
            conf[f"program:{name}"] = usual | own | dict(options) | {"command": self._script(name, text)}
        conf["eventlistener:watchdog"]["stdout_logfile"] = str(self.folder / "protocol")
        moved(conf, self.folder)
        return conf

    def _script(self, name: str, text: str) -> str:
        if text.startswith("/"):
            return text
        path = self.folder / f"{name}.py"
        path.write_text(text, "utf-8")
        return f'"{PROJECT}/bin/python" "{path}"'


class ReportedStates:
    """What the watchdog reported to Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def exits(self, program: str) -> float | None:
        return self._value("program_exits_total", program)

    def state(self, program: str) -> float | None:
        return self._value("program_state", program)

    def bad_settings(self, program: str) -> float | None:
        return self._value("program_bad_settings", program)

    def wait_for_ticks(self, number: int) -> None:
        """Waits until the watchdog has handled that many ticks."""
        for _ in range(number):
            self.wait_for_heartbeat("watchdog")

    def wait_for_heartbeat(self, job: str) -> None:
        """Waits for the job's next heartbeat."""
        before = self._heartbeat(job)
        wait_for(lambda: self._heartbeat(job) > before, f"{job} writes a heartbeat")

    def _heartbeat(self, job: str) -> float:
        state = self._read().jobs.get(job)
        return state.heartbeat or 0.0 if state else 0.0

    def _value(self, metric: str, program: str) -> float | None:
        readings = self._read()
        found = (each for each in (*readings.counters, *readings.gauges) if each.metric == metric)
        return next((each.value for each in found if each.labels.get("program") == program), None)

    def _read(self) -> CounterReadings:
        return read_all(self._client)
