"""Running one of the commands of bin/campaign. The job imports none of this."""

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

COMMANDS = {
    "check": check_command.run,
    "test": test_command.run,
    "list": list_command.run,
    "show": show_command.run,
    "failures": failure_commands.run,
    "retry": failure_commands.run,
}


def run(options: argparse.Namespace) -> int:
    """Runs one command. Returns the exit status; raises SettingsError, SchemaError."""
    settings = program.settings_from_environment("campaign")
    try:
        with closing(Database(settings.database_url, "crm-worker campaign")) as db:
            require_current(db)
            return COMMANDS[options.command](options, db, settings)
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
