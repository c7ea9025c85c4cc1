"""The arguments of bin/suppress, and running one of its commands."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime

import psycopg2

from worker.consent.address_file import LONGEST_LINE, AddressFile, opened
from worker.consent.commands import IMPORTED_WITH_BAD_LINES, SuppressionCommands
from worker.errors import CommandRefused
from worker.runtime import program
from worker.runtime.clock import utc_now
from worker.runtime.console import to_stderr
from worker.runtime.counters import Counters
from worker.runtime.db import Database, is_unavailable
from worker.runtime.migrations import require_current
from worker.sending.suppression import SuppressionList

DESCRIPTION = """\
Changes and shows the addresses that a tenant may not write to or call. Campaigns, reminders, mails about trials and
calls obey the list from the next moment on; who unsubscribed still gets reminders and mails about trials. Phone
numbers have their country code, or are Indian: +91 98765 43210 and 09876543210 are one."""

HOW_IT_ENDS = f"""\
Exit status: 0 done; 1 refused or failed, and nothing was changed; 2 bad settings or arguments, or bin/migrate has to
run; {IMPORTED_WITH_BAD_LINES} imported, but lines were left out that have no address."""

IMPORT = f"""\
Suppresses the addresses of a CSV file, one in a line: UTF-8, with commas, semicolons or tabs. A first line without an
address is a heading. Lines without an address are left out and named. It is one transaction: when it is interrupted,
nothing was imported, and it can be repeated as often as you like. There is no limit to the number of lines; a line
has at most {LONGEST_LINE:,} characters. A million numbers take some seconds, and some 100 MB of temporary files at
PostgreSQL."""

REMOVE = """\
Takes addresses off the list: these, or with --campaign and --source all that came from one campaign, in one
transaction. That is for bounces which were the mail server's fault: bin/campaign retry then sends to them again."""

CHANNELS = ("email", "whatsapp", "call")
SOURCES = ("unsubscribe", "bounce", "complaint", "provider", "operator", "import")
DEFAULT_LIMIT, LONGEST_REASON = 100, 500


def parser() -> argparse.ArgumentParser:
    result = program.parser("suppress", DESCRIPTION, HOW_IT_ENDS)
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    add = _command(commands, "add", "suppress addresses", "Suppresses these addresses: all of them, or none.")
    add.add_argument("addresses", metavar="ADDRESS", nargs="+")
    _add_entry_options(add, "operator")
    remove = _command(commands, "remove", "take addresses off the list", REMOVE)
    remove.add_argument("addresses", metavar="ADDRESS", nargs="*")
    remove.add_argument(
        "--campaign", metavar="ID", help="instead of addresses: all that came from this campaign and --source"
    )
    remove.add_argument("--source", choices=SOURCES, help="only what came from there; default: whatever it is")
    load = _command(commands, "import", "suppress the addresses of a file", IMPORT)
    load.add_argument("file", metavar="FILE.csv", help="- is standard input")
    load.add_argument("--column", type=_column, help="its number, from 1, or its name in the heading; default: 1")
    _add_entry_options(load, "import")
    show = _command(commands, "list", "show the list", "Shows the list, or what is on it of these addresses.")
    show.add_argument("addresses", metavar="ADDRESS", nargs="*")
    show.add_argument("--source", choices=SOURCES, help="only what came from there")
    show.add_argument(
        "--limit", type=_limit, default=DEFAULT_LIMIT, help=f"entries that are shown; default {DEFAULT_LIMIT}"
    )
    export = _command(commands, "export", "write the list to a file", "Writes the whole list as CSV.")
    export.add_argument("file", metavar="FILE.csv", nargs="?", default="-", help="- is standard output, the default")
    export.add_argument("--source", choices=SOURCES, help="only what came from there")
    return result


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; ends the program with status 2 when they are wrong."""
    made = parser()
    options = made.parse_args(arguments)
    if options.command == "remove" and bool(options.addresses) == bool(options.campaign):
        made.error("remove: either addresses, or --campaign and --source")
    if options.command == "remove" and options.campaign and not options.source:
        made.error("remove: --campaign needs --source: who unsubscribed or complained should stay on the list")
    return options


def run(options: argparse.Namespace) -> int:
    """Runs one command. Returns the exit status; raises SettingsError and SchemaError."""
    settings = program.settings_from_environment("suppress")
    client = program.redis_client(settings)
    counters = Counters(client, "suppress")
    with closing(client), closing(Database(settings.database_url, "crm-worker suppress")) as db:
        commands = SuppressionCommands(db, counters, SuppressionList(options.tenant, options.channel))
        try:
            require_current(db)
            status = _run(commands, options)
        except BrokenPipeError:  # the reader, such as head, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            _report_failure(commands, "Stopped")
            return 1
        except psycopg2.Error as error:
            what = "PostgreSQL does not answer" if is_unavailable(error) else "PostgreSQL refused it"
            _report_failure(commands, f"{what}: {(error.diag.message_primary or str(error)).strip()}")
            return 1
        except (CommandRefused, OSError) as error:
            to_stderr(str(error))
            return 1
        if not counters.flush():
            to_stderr("It is done; it is not counted in the metrics.")
        return status


def _report_failure(commands: SuppressionCommands, what: str) -> None:
    if commands.may_have_changed:
        to_stderr(f"{what}. It may have been done all the same: run it again, which does no harm.")
    else:
        to_stderr(f"{what}. Nothing was changed.")


def _run(commands: SuppressionCommands, options: argparse.Namespace) -> int:
    match options.command:
        case "add":
            return commands.add(options.addresses, options.source, options.reason, options.until)
        case "remove":
            if options.campaign:
                return commands.remove_campaign(options.campaign, options.source)
            return commands.remove(options.addresses, options.source)
        case "import":
            with opened(options.file) as stream:
                file = AddressFile(stream, options.column)
                return commands.import_file(file, options.source, options.reason, options.until)
        case "list":
            return commands.show(options.addresses, options.source, options.limit)
    return commands.export(options.file, options.source)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    result = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--tenant", required=True, metavar="ID", help="whose list: the id of the tenant")
    result.add_argument("--channel", required=True, choices=CHANNELS)
    return result


def _add_entry_options(command: argparse.ArgumentParser, source: str) -> None:
    command.add_argument("--reason", type=_reason, help="why, for whoever looks at the list")
    command.add_argument("--source", choices=SOURCES, default=source, help=f"where it comes from; default: {source}")
    command.add_argument(
        "--until", type=_until, metavar="TIME", help="2027-01-31 or 2027-01-31T18:00+05:30 (UTC); default: for ever"
    )


def _reason(text: str) -> str:
    if not 0 < len(text) <= LONGEST_REASON:
        raise argparse.ArgumentTypeError(f"1 to {LONGEST_REASON} characters")
    return text


def _column(text: str) -> str:
    if not text.strip() or text == "0":
        raise argparse.ArgumentTypeError("a number from 1, or a name")
    return text.strip()


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError("a number from 1 to 100000; bin/suppress export writes all")
    return int(text)


def _until(text: str) -> datetime:
    """UTC without a zone."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a date such as 2027-01-31") from None
    at = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
    if at <= utc_now().replace(tzinfo=None):
        raise argparse.ArgumentTypeError("a time to come")
    return at
