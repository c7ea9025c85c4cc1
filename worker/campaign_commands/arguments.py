"""The arguments of bin/campaign, as the job and as its commands. The job imports no more of them than this."""

import argparse
from collections.abc import Callable, Sequence

from worker.campaigns.states import CAMPAIGN_STATUSES
from worker.runtime import program
from worker.sending.outcomes import FailureKind

MARK = "[Test] "  # of a test
NAME_OF_TEST = "Test Recipient"
LIST_LIMIT = 50
RETRIABLE = tuple(kind for kind in FailureKind if kind is not FailureKind.SUPPRESSED)

DESCRIPTION = """\
Sends the due e-mail and WhatsApp campaigns of all tenants, each message once: starts campaigns whose time has
come, gives every running campaign one batch after the other, and settles what a killed worker left behind."""

CHECK = """\
Looks at a campaign, whatever its status, and changes and sends nothing: who would get it and who not, one message as
it would leave, its links, values that are missing, its size, its From, the limits that apply, and when it would end.
What is wrong comes first, the worst of it at the top. Exit status: 0 nothing, 1 warnings, 2 errors."""

TEST = f"""\
Sends one message of a campaign, whatever its status, to an address that you name. Its subject, or its WhatsApp text,
begins with "{MARK.strip()}"; a WhatsApp template cannot be marked. It leaves through the campaign's account, at its
pace, and counts in its quota. Nothing is written to the campaign, and who is suppressed gets nothing. The recipient's
name is "{NAME_OF_TEST}" or --name; no real recipient's values are used."""

LIST = """\
Shows campaigns of all tenants: those that are running, then those due next, then the others, the latest changed
first."""

SHOW = """\
Shows the state of a campaign, its counts, what it waits for and until when, its failures by kind, and when it is
expected to end."""

FAILURES = "Shows the recipients of a campaign that failed, with the provider's reply."

RETRY = """\
Sets failed recipients of an ended campaign back to pending, and schedules it for now. What was sent stays sent; who
is on the suppression list is left out."""


def parser() -> argparse.ArgumentParser:
    """``command`` is None for the job itself. Each command sets ``failed``, its status when it fails."""
    result = program.job_parser("campaign", DESCRIPTION)
    result.epilog = (
        f"{result.epilog}\nA command ends with status 1 when it was refused, failed, or found nothing to do; check "
        "ends with 2 then, and with 1 when there are warnings only."
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands, instead of the job")
    check = _with_id(_command(commands, "check", "look at a campaign before it is sent", CHECK, failed=2))
    check.add_argument("--json", action="store_true", help="one JSON object; docs/operating.md has its shape")
    test = _with_id(_command(commands, "test", "send one message of a campaign to yourself", TEST))
    to_help = "an e-mail address; of a WhatsApp campaign, a number"
    test.add_argument("--to", metavar="ADDRESS", required=True, help=to_help)
    test.add_argument("--name", default=NAME_OF_TEST, help=f"the recipient's name; default: {NAME_OF_TEST}")
    _add_list_options(_command(commands, "list", "show the campaigns and their ids", LIST))
    _with_id(_command(commands, "show", "show the state of a campaign, and when it will end", SHOW))
    failures = _with_id(_command(commands, "failures", "show who was not reached, and why", FAILURES))
    _add_kinds(failures, tuple(FailureKind), default=tuple(FailureKind))
    failures.add_argument("--csv", action="store_true", help="as CSV")
    retry = _with_id(_command(commands, "retry", "send again to recipients that failed", RETRY))
    _add_kinds(retry, RETRIABLE)
    retry.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    return result


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    description: str,
    failed: int = 1,
) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    result = commands.add_parser(name, help=text, description=description, formatter_class=formatter)
    result.set_defaults(failed=failed)
    return result


def _with_id(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("campaign", metavar="ID", help="the campaign's id")
    return command


def _add_list_options(command: argparse.ArgumentParser) -> None:
    statuses = ", ".join(CAMPAIGN_STATUSES)
    command.add_argument("--status", type=_statuses, default=[], help=f"only these, separated by commas: {statuses}")
    command.add_argument("--tenant", metavar="ID", help="only those of the tenant with this id")
    command.add_argument(
        "--limit", type=_limit, default=LIST_LIMIT, help=f"campaigns that are shown; default {LIST_LIMIT}"
    )


def _add_kinds(
    command: argparse.ArgumentParser, kinds: Sequence[FailureKind], default: Sequence[FailureKind] = ()
) -> None:
    command.add_argument(
        "--kind",
        dest="kinds",
        metavar="KIND",
        type=_kinds_of(kinds),
        default=default,
        required=not default,
        help=f"only these kinds, separated by commas: {', '.join(kinds)}",
    )


def _kinds_of(allowed: Sequence[FailureKind]) -> Callable[[str], tuple[FailureKind, ...]]:
    """Parses kinds of failures, separated by commas."""

    def parse(raw: str) -> tuple[FailureKind, ...]:
        names = [name.strip() for name in raw.split(",") if name.strip()]
        if not names or not set(names) <= set(map(str, allowed)):
            raise argparse.ArgumentTypeError(f"{raw!r}: one or more of {', '.join(allowed)}, separated by commas")
        return tuple(FailureKind(name) for name in dict.fromkeys(names))

    return parse


def _statuses(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(CAMPAIGN_STATUSES):
        raise argparse.ArgumentTypeError(f"{text!r}: one or more of {', '.join(CAMPAIGN_STATUSES)}")
    return names


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError("a number from 1 to 100000")
    return int(text)
