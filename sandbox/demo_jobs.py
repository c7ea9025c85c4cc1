"""The demo data for reminders, calls, call-cleanup and trial, and what these jobs have done with them."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sandbox.crm import Crm, utc_now
from sandbox.world import World

QUIET_LEADS, FRESH_LEADS = 60, 10
CALLS, WAITING_CALLS, OLD_CALLS = 5, 3, 25
NO_NUMBER = "12"
OWNER = "owner@bharat-crm.example"
COLLEAGUE = "sales-head@chaiwala.example"
MANAGER = "manager@chaiwala.example"
MANAGER_PHONE = "+919800012345"
NIGHT_TENANT, TRIAL_TENANT = "Night Owl Bakery", "Trial Textiles"
INDIA = ZoneInfo("Asia/Kolkata")


def prepare(crm: Crm) -> None:
    """Inserts quiet leads, calls inside and outside business hours, rows to delete, and an expired trial."""
    _leads(crm)
    _calls(crm)
    trial = crm.add_tenant(TRIAL_TENANT, plan="FREE", status="TRIAL", subscriptionEnd=utc_now() - timedelta(days=1))
    crm.add_user(trial, role="ADMIN")
    crm.add_user(trial)


def _leads(crm: Crm) -> None:
    user = crm.user_id
    crm.execute('UPDATE "User" SET email = %s WHERE id = %s', (MANAGER, user))  # not a recipient of the campaign
    reminders = {
        "enabled": True,
        "recipientUserIds": [user],
        "recipientEmails": [COLLEAGUE],
        "recipientPhones": [MANAGER_PHONE],
    }
    crm.execute(
        """UPDATE "Tenant" SET settings = settings || jsonb_build_object('leadReminders', %s::jsonb) WHERE id = %s""",
        (json.dumps(reminders), crm.tenant_id),
    )
    for number in range(QUIET_LEADS + FRESH_LEADS):
        days = 3 if number < QUIET_LEADS else 0
        crm.add_lead(createdAt=utc_now() - timedelta(days=days, minutes=number))


def _calls(crm: Crm) -> None:
    crm.add_call_settings(maxConcurrentCalls=10)
    for _ in range(CALLS):
        crm.add_call(leadId=crm.add_lead())
    crm.add_call(phoneNumber=NO_NUMBER)
    night = crm.add_tenant(NIGHT_TENANT)
    opens = datetime.now(INDIA) + timedelta(hours=6)
    hours = {"businessHoursStart": f"{opens:%H:%M}", "businessHoursEnd": f"{opens + timedelta(hours=2):%H:%M}"}
    crm.add_call_settings(night, enableBusinessHours=True, **hours)
    for _ in range(WAITING_CALLS):
        crm.add_call(night)
    for _ in range(OLD_CALLS):
        crm.add_call(status="completed", updatedAt=utc_now() - timedelta(days=40))


@dataclass(frozen=True)
class JobsProgress:
    """What the database and the stand-ins show of the four jobs."""

    digests: int
    placed: int
    not_dialled: int
    waiting: int
    opens: str
    old_rows: int
    suspended: int
    deactivated: int
    notified: int

    @property
    def done(self) -> bool:
        return (
            self.digests == 3
            and self.placed >= CALLS  # at a later start the other tenant's business hours may have begun
            and self.not_dialled == 1
            and self.placed + self.waiting == CALLS + WAITING_CALLS
            and not self.old_rows
            and (self.suspended, self.deactivated, self.notified) == (1, 2, 2)
        )

    def lines(self) -> list[str]:
        waiting = f"{self.waiting} wait for business hours from {self.opens}, " if self.waiting else ""
        return [
            f"Reminders: {QUIET_LEADS} quiet leads, {self.digests} of 3 digests sent (2 by e-mail, 1 on WhatsApp)",
            f"Calls: {self.placed} placed, {waiting}{self.not_dialled} refused: {NO_NUMBER!r} is not a phone number",
            f"Call clean-up: {OLD_CALLS - self.old_rows} of {OLD_CALLS} old rows deleted",
            f"Trials: {self.suspended} suspended with {self.deactivated} users, {self.notified} of 2 people notified",
        ]


def progress(cursor: Any, world: World) -> JobsProgress:
    cursor.execute(
        """SELECT (SELECT count(*) FROM "EmailLog" WHERE "entityType" = 'LeadReminder'),
                  (SELECT count(*) FROM "CallLog"),
                  (SELECT count(*) FROM "CallQueue" WHERE status = 'failed'),
                  (SELECT count(*) FROM "CallQueue" WHERE status = 'pending'),
                  (SELECT "businessHoursStart" FROM "CallSettings" WHERE "businessHoursStart" IS NOT NULL),
                  (SELECT count(*) FROM "CallQueue"
                   WHERE "updatedAt" < now() AT TIME ZONE 'UTC' - interval '30 days'),
                  (SELECT count(*) FROM "Tenant" WHERE status = 'SUSPENDED'),
                  (SELECT count(*) FROM "User" WHERE NOT "isActive"),
                  (SELECT array_agg(lower("contactEmail")) FROM "Tenant" WHERE name = %s)""",
        (TRIAL_TENANT,),
    )
    emails, placed, not_dialled, waiting, opens, old_rows, suspended, deactivated, contacts = cursor.fetchone()
    mails, messages = world.counts("smtp"), world.counts("whatsapp")
    notified = sum(mails[address] for address in (OWNER, *contacts))
    digests = emails + messages[MANAGER_PHONE.removeprefix("+")]
    return JobsProgress(
        digests=digests,
        placed=placed,
        not_dialled=not_dialled,
        waiting=waiting,
        opens=opens,
        old_rows=old_rows,
        suspended=suspended,
        deactivated=deactivated,
        notified=notified,
    )
