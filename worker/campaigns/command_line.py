"""The arguments of bin/campaign, and running one of its commands."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing

import psycopg2

from worker.campaigns.failure_commands import RETRIABLE, FailureCommands, write
from worker.errors import WorkerError
from worker.runtime import program
from worker.runtime.db import Database
from worker.runtime.migrations import require_current
from worker.sending.outcomes import FailureKind

DESCRIPTION = """\
Sends the due e-mail and WhatsApp campaigns of all tenants, each message once: starts campaigns whose time has
come, gives every running campaign one batch after the other, and settles what a killed worker left behind."""


def parser() -> argparse.ArgumentParser:
    """``command`` is None for the job itself."""
    result = program.job_parser("campaign", DESCRIPTION)
    result.epilog = (
        f"{result.epilog}\nA command ends with status 1 when it was refused, failed, or found nothing to do."
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands, instead of the job")
    failures = commands.add_parser(
        "failures",
        help="show who was not reached, and why",
        description="Shows the recipients of a campaign that failed, with the provider's reply.",
    )
    failures.add_argument("campaign", metavar="ID", help="the campaign's id")
    failures.add_argument(
        "--kind",
        dest="kinds",
        metavar="KIND",
        type=_kinds_of(tuple(FailureKind)),
        default=tuple(FailureKind),
        help=f"only these kinds, separated by commas: {', '.join(FailureKind)}",
    )
    failures.add_argument("--csv", action="store_true", help="as CSV")
    retry = commands.add_parser(
        "retry",
        help="send again to recipients that failed",
        description="Sets failed recipients of an ended campaign back to pending, and schedules it for now. What was "
        "sent stays sent; who is on the suppression list is left out.",
    )
    retry.add_argument("campaign", metavar="ID", help="the campaign's id")
    retry.add_argument(
        "--kind",
        dest="kinds",
        metavar="KIND",
        type=_kinds_of(RETRIABLE),
        required=True,
        help=f"which failures, separated by commas: {', '.join(RETRIABLE)}",
    )
    retry.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    return result


def run(options: argparse.Namespace) -> int:
    """Runs one command. Returns the exit status, 1 when it could not be done; raises SettingsError, SchemaError."""
    settings = program.settings_from_environment("campaign")
    try:
        with closing(Database(settings.database_url, "crm-worker campaign")) as db:
            require_current(db)
            commands = FailureCommands(db, db.read_time)
            if options.command == "failures":
                return commands.show(options.campaign, options.kinds, as_csv=options.csv)
            return commands.retry(options.campaign, options.kinds, dry_run=options.dry_run)
    except psycopg2.Error as error:
        write(f"PostgreSQL: {str(error).strip()}")
    except WorkerError as error:
        write(str(error))
    except BrokenPipeError:  # the reader has seen enough; what is left of the text has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        write("Stopped.")
    return 1


def _kinds_of(allowed: Sequence[FailureKind]) -> Callable[[str], tuple[FailureKind, ...]]:
    """Parses kinds of failures, separated by commas."""

    def parse(raw: str) -> tuple[FailureKind, ...]:
        names = [name.strip() for name in raw.split(",") if name.strip()]
        if not names or not set(names) <= set(map(str, allowed)):
            raise argparse.ArgumentTypeError(f"{raw!r}: one or more of {', '.join(allowed)}, separated by commas")
        return tuple(FailureKind(name) for name in dict.fromkeys(names))

    return parse
