"""The rights that docs/operating.md grants are enough for every job."""

import re
import secrets
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from workers import PROJECT, Start

from sandbox import reports
from sandbox.crm import Crm, utc_now
from sandbox.demo_jobs import OWNER, TRIAL_TENANT
from sandbox.dovecot import Dovecot
from sandbox.world import World

PAGE = PROJECT / "docs" / "operating.md"
REMINDED = "sales-head@chaiwala.example"


@pytest.fixture
def role(crm: Crm) -> Iterator[tuple[str, str]]:
    """Name and password of a role that has the rights on the page, and no others."""
    name, password = f"crm_worker_{secrets.token_hex(4)}", secrets.token_hex(8)
    (grants,) = re.findall(r"```sql\n(.*?GRANT.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    crm.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    crm.execute(re.sub(r"\bcrm_worker\b", name, textwrap.dedent(grants)))
    yield name, password
    crm.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def add_work_for_each_job(crm: Crm) -> None:
    crm.add_lead(createdAt=utc_now() - timedelta(days=3))
    crm.add_campaign("email", recipients=2, useShortLinks=True)
    crm.add_campaign("whatsapp", targetType="leads")
    crm.execute(
        """UPDATE "Tenant" SET settings = settings || jsonb_build_object('leadReminders',
               jsonb_build_object('enabled', true, 'recipientEmails', jsonb_build_array(%s::text)))""",
        (REMINDED,),
    )
    template = {"name": "Ours", "type": "reminder", "subject": "{{leadsCount}} leads", "htmlBody": "{{leadsList}}"}
    crm.insert("EmailTemplate", template | {"tenantId": crm.tenant_id, "createdBy": crm.user_id})
    crm.add_call_settings()
    script = crm.insert("CallScript", {"name": "Hello", "tenantId": crm.tenant_id, "userId": crm.user_id})
    crm.add_call(leadId=crm.add_lead(), callScriptId=script)
    crm.add_call(phoneNumber="12")
    crm.add_call(status="failed", updatedAt=utc_now() - timedelta(days=31))
    trial = crm.add_tenant(TRIAL_TENANT, plan="FREE", status="TRIAL", subscriptionEnd=utc_now() - timedelta(days=1))
    crm.add_user(trial)


def test_the_granted_rights_are_enough(
    crm: Crm, world: World, start: Start, role: tuple[str, str], database_url: str, mailbox: Dovecot
) -> None:
    """As a role with only the rights on the page, every job does all of its work."""
    add_work_for_each_job(crm)
    parts = urlsplit(database_url)
    place = parts.netloc.rpartition("@")[2]
    url = parts._replace(netloc=f"{role[0]}:{role[1]}@{place}").geturl()
    bounced = {"BOUNCE_ADDRESS": "bounces@mail.example", "BOUNCE_MAILBOX_URL": mailbox.url}
    for program in ("campaign", "reminders", "calls", "call-cleanup", "trial", "bounces"):
        if program == "bounces":
            for each in world.deliveries("smtp"):
                mailbox.deliver(reports.postfix(each.account, each.address))
        worker = start("--once", program=program, DATABASE_URL=url, OWNER_EMAIL=OWNER, **bounced)
        assert worker.wait() == 0, program
        assert "permission denied" not in worker.log
    assert set(crm.execute('SELECT status FROM "Campaign"')) == {("completed",)}
    assert crm.execute('SELECT "usageCount" FROM "EmailTemplate"') == [(1,)]
    assert dict(crm.execute('SELECT status, count(*) FROM "CallQueue" GROUP BY 1')) == {"completed": 1, "failed": 1}
    assert crm.execute('SELECT "usageCount" FROM "CallScript"') == [(1,)]
    assert crm.value("""SELECT count(*) FROM "Tenant" WHERE status = 'SUSPENDED'""") == 1
    assert crm.value('SELECT count(*) FROM "User" WHERE NOT "isActive"') == 1
    assert {REMINDED, OWNER} <= world.counts("smtp").keys()
    assert crm.value("SELECT count(*) FROM worker.failure") == 2
    assert crm.value("SELECT count(*) FROM worker.suppression WHERE source = 'bounce'") >= 3
