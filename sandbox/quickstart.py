"""bin/quickstart: starts servers and the worker's programs under supervisord, and shows a campaign being sent."""

import argparse
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox import demo, quickstart_progress
from sandbox.quickstart_environment import QuickstartEnvironment
from sandbox.servers import ServerFailed, ServerMissing

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / ".sandbox"
TIMEOUT_SECONDS = 120.0  # without any progress

DESCRIPTION = """\
Starts PostgreSQL, Redis, an SMTP inbox and stand-ins of the providers under their own supervisord, inserts a demo
tenant with an e-mail campaign of 500 and a WhatsApp campaign of 200 recipients, quiet leads, queued calls and an
expired trial, and runs the worker's programs. The data stay in .sandbox/, so a second start continues where the first
one ended. No process is left when it ends."""

EPILOG = """\
DATABASE_URL and REDIS_URL: existing servers, used instead of its own. In the server at DATABASE_URL it creates the
database bharat_crm_quickstart and changes nothing else.
Exit status: 0 stopped, or with --once all done; 1 otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bin/quickstart",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end when all work is done")
    parser.add_argument("--fresh", action="store_true", help="delete the data of earlier starts first")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("bin/quickstart is already running here; stop it with: bin/supervisorctl shutdown", file=sys.stderr)
            return 1
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        return _run(once=options.once, fresh=options.fresh)


def _run(*, once: bool, fresh: bool) -> int:
    if fresh:
        for path in FOLDER.iterdir():
            if path.name not in ("lock", "node", "node-qdrant"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    environment = QuickstartEnvironment(PROJECT, FOLDER, os.environ)
    try:
        print("Starting PostgreSQL, Redis, the inbox and the providers' stand-ins under supervisord ...", flush=True)
        began = time.monotonic()
        environment.start()
        campaigns = demo.prepare(environment)
        environment.start_programs()
        print(f"Up after {time.monotonic() - began:.1f} s.\n", flush=True)
        delivered = quickstart_progress.watch(environment, campaigns, TIMEOUT_SECONDS)
        if once:
            return 0 if delivered else 1
        print("\nIt keeps running until you press Ctrl-C.", flush=True)
        environment.wait()
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
        return 1 if once else 0
    except (ServerFailed, ServerMissing) as error:
        print(f"bin/quickstart: {error}", file=sys.stderr)
        return 1
    finally:
        environment.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
