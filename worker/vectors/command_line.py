"""The arguments of bin/knowledge, and running one of its commands."""

import argparse
from contextlib import closing

import redis

from worker.errors import ServerUnavailable, WorkerError
from worker.runtime import program
from worker.runtime.console import write

DESCRIPTION = """\
Maintains the collection of the CRM's AI in Qdrant: creates it if it is missing, takes a snapshot each
KNOWLEDGE_SNAPSHOT_INTERVAL, and deletes old snapshots. It never changes or drops an existing collection."""


def parser() -> argparse.ArgumentParser:
    """``command`` is None for the job itself."""
    result = program.job_parser("knowledge", DESCRIPTION)
    result.epilog = (
        f"{result.epilog}\n"
        "A command ends with status 1 when it was refused, failed, or found that a snapshot is not good."
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands, instead of the job")
    commands.add_parser("snapshot", help="take a snapshot now", description="Takes a snapshot now.")
    name_help = "its name in Qdrant or in KNOWLEDGE_SNAPSHOT_DIR, or the path of a file"
    verify = commands.add_parser(
        "verify",
        help="prove that a snapshot can be restored",
        description="Restores a snapshot into a scratch collection, counts its points, and deletes that collection.",
    )
    verify.add_argument("snapshot", metavar="SNAPSHOT", nargs="?", help=f"{name_help}; default: the newest")
    restore = commands.add_parser(
        "restore",
        help="restore a snapshot (asks first)",
        description="Replaces the collection by a snapshot. Takes a snapshot of the present collection first.",
    )
    restore.add_argument("snapshot", metavar="SNAPSHOT", help=name_help)
    restore.add_argument("--yes", action="store_true", help="do not ask")
    return result


def run(options: argparse.Namespace) -> int:
    """Runs one command. Returns the exit status, 1 when it could not be done; raises SettingsError."""
    from worker.vectors.commands import KnowledgeCommands  # the job itself does without

    settings = program.settings_from_environment("knowledge")
    client = program.redis_client(settings)
    commands = KnowledgeCommands(settings, client)
    try:
        with closing(client), closing(commands):
            if options.command == "restore":
                return commands.restore(options.snapshot, ask=not options.yes)
            return commands.verify(options.snapshot) if options.command == "verify" else commands.take()
    except ServerUnavailable as error:
        write(f"{error.server} does not answer: {error}")
    except redis.RedisError as error:
        write(f"Redis does not answer: {str(error).strip()}")
    except (WorkerError, OSError) as error:
        write(str(error))
    except KeyboardInterrupt:
        write("Stopped.")
    return 1
