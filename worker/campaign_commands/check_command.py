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
