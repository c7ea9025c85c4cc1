"""bin/campaign check: a look at a campaign before it is sent."""

import argparse
import json
import sys
from contextlib import closing

from worker.campaign_commands.campaign_check import CampaignChecker
from worker.campaign_commands.check_problems import worst
from worker.campaign_commands.check_report import as_json, text_lines
from worker.campaign_commands.recipient_review import RecipientReview
from worker.campaigns.transport import TransportRouter
from worker.runtime import program
from worker.runtime.clock import utc_now
from worker.runtime.console import progress, write
from worker.runtime.db import Database
from worker.runtime.settings import Settings

DESCRIPTION = """\
Looks at a campaign, whatever its status, and changes and sends nothing: who would get it and who not, one message as
it would leave, its links, values that are missing, its size, its From, the limits that apply, and when it would end.
What is wrong comes first, the worst of it at the top. Exit status: 0 nothing, 1 warnings, 2 errors."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "check",
        help="look at a campaign before it is sent",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("campaign", metavar="ID", help="the campaign's id")
    parser.add_argument("--json", action="store_true", help="one JSON object; docs/operating.md has its shape")
    parser.set_defaults(run=run, failed=2)


def run(options: argparse.Namespace, db: Database, settings: Settings) -> int:
    """Returns the exit status. Raises CommandRefused, SettingsError and psycopg2.Error."""
    review = RecipientReview()
    with closing(program.redis_client(settings)) as client:
        transports = TransportRouter(settings, client, utc_now)
        with closing(transports), progress(lambda: f"{review.looked_at:,} recipients looked at", sys.stderr):
            check = CampaignChecker(db, settings, transports).check(options.campaign, review)
    if options.json:
        write(json.dumps(as_json(check)))
    else:
        for line in text_lines(check):
            write(line)
    return int(worst(list(check.problems)))
