"""bin/quickstart: an embedded world under supervisord, and the worker at work in it, in front of your eyes."""

import argparse
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox import demo, screen
from sandbox.servers import ServerFailed, ServerMissing
from sandbox.stage import Stage

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / ".sandbox"
PATIENCE_SECONDS = 120.0  # without any progress, --once gives up

DESCRIPTION = """\
Starts PostgreSQL, Redis, an SMTP inbox and stand-ins of the providers under a supervisord of their own, makes a demo
tenant with an e-mail campaign of 500 and a WhatsApp campaign of 200, leads to remind of, queued calls and an expired
trial, and lets the worker's programs do their work. Data stay in .sandbox/, so a second start picks up where the
first one ended. Nothing is left running when it ends."""

EPILOG = """\
DATABASE_URL and REDIS_URL: servers that are already there, used instead of embedded ones. In the server at
DATABASE_URL a database of its own is made, bharat_crm_quickstart; nothing else there is touched.
Exit status: 0 stopped, or with --once all done; 1 otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bin/quickstart",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end when all is done")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier starts did")
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
    stage = Stage(PROJECT, FOLDER, os.environ)
    try:
        print("Starting PostgreSQL, Redis, the inbox and the providers' stand-ins under supervisord ...", flush=True)
        began = time.monotonic()
        stage.start()
        show = demo.prepare(stage)
        stage.start_programs()
        print(f"Up after {time.monotonic() - began:.1f} s.\n", flush=True)
        delivered = screen.watch(stage, show, PATIENCE_SECONDS)
        if once:
            return 0 if delivered else 1
        print("\nIt stays up until you press Ctrl-C.", flush=True)
        stage.wait()
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
        return 1 if once else 0
    except (ServerFailed, ServerMissing) as error:
        print(f"bin/quickstart: {error}", file=sys.stderr)
        return 1
    finally:
        stage.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
