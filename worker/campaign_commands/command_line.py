"""The arguments of bin/campaign, and running one of its commands."""

import argparse
import os
import sys
from contextlib import closing

import psycopg2

from worker.campaign_commands import check_command, failure_commands, list_command, show_command, test_command
from worker.errors import SchemaError, SettingsError, WorkerError
from worker.runtime import program
from worker.runtime.console import to_stderr
from worker.runtime.db import Database
from worker.runtime.migrations import require_current

DESCRIPTION = """\
Sends the due e-mail and WhatsApp campaigns of all tenants, each message once: starts campaigns whose time has
come, gives every running campaign one batch after the other, and settles what a killed worker left behind."""

COMMANDS = (check_command, test_command, list_command, show_command, failure_commands)


def parser() -> argparse.ArgumentParser:
    """``command`` is None for the job itself. Each command sets ``run``, and ``failed``, its status when it fails."""
    result = program.job_parser("campaign", DESCRIPTION)
    result.epilog = (
        f"{result.epilog}\nA command ends with status 1 when it was refused, failed, or found nothing to do; check "
        "ends with 2 then, and with 1 when there are warnings only."
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands, instead of the job")
    for command in COMMANDS:
        command.add(commands)
    return result


def run(options: argparse.Namespace) -> int:
    """Runs one command. Returns the exit status; raises SettingsError, SchemaError."""
    settings = program.settings_from_environment("campaign")
    try:
        with closing(Database(settings.database_url, "crm-worker campaign")) as db:
            require_current(db)
            return int(options.run(options, db, settings))
    except (SettingsError, SchemaError):
        raise
    except psycopg2.Error as error:
        to_stderr(f"PostgreSQL: {str(error).strip()}")
    except WorkerError as error:
        to_stderr(str(error))
    except UnicodeEncodeError:
        to_stderr("An argument is not text in UTF-8: give it as `bin/campaign list` shows it")
    except BrokenPipeError:  # the reader has seen enough; what is left of the text has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        to_stderr("Stopped.")
    return int(options.failed)
