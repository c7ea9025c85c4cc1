"""Work for every job, and the jobs that do it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from workers import Start, Worker

from sandbox import reports
from sandbox.crm import Crm, utc_now
from sandbox.demo_jobs import OWNER, TRIAL_TENANT
from sandbox.dovecot import Dovecot
from sandbox.world import World

REMINDED = "sales-head@chaiwala.example"


def every_job_works(
    crm: Crm, world: World, start: Start, mailbox: Dovecot, folder: Path, database_url: str, **settings: str
) -> Iterator[Worker]:
    """Every job, and then bin/suppress, does all of its work with this DATABASE_URL. Yields each at its end."""
    add_work_for_each_job(crm)
    settings |= {"DATABASE_URL": database_url, "OWNER_EMAIL": OWNER}
    settings |= {"BOUNCE_ADDRESS": "bounces@mail.example", "BOUNCE_MAILBOX_URL": mailbox.url}
    for program in ("campaign", "reminders", "calls", "call-cleanup", "trial", "bounces"):
        if program == "bounces":
            for each in world.deliveries("smtp"):
                mailbox.deliver(reports.postfix(each.account, each.address))
        worker = start("--once", program=program, **settings)
        assert worker.wait() == 0, program
        yield worker
    assert_done(crm, world)
    file = folder / "dnd.csv"
    file.write_text("9876543210\n")
    for command in (
        ("add", "9876543211"),
        ("import", str(file)),
        ("export", "-"),
        ("list",),
        ("remove", "9876543211"),
    ):
        arguments = (*command, "--tenant", crm.tenant_id, "--channel", "call")
        worker = start(*arguments, program="suppress", **settings)
        assert worker.wait() == 0, worker.log
        yield worker
    assert crm.execute("SELECT address FROM worker.suppression WHERE channel = 'call'") == [("919876543210",)]


def assert_done(crm: Crm, world: World) -> None:
    """What the jobs leave behind when nothing went wrong."""
    assert set(crm.execute('SELECT status FROM "Campaign"')) == {("completed",)}
    assert crm.execute('SELECT "usageCount" FROM "EmailTemplate"') == [(1,)]
    assert dict(crm.execute('SELECT status, count(*) FROM "CallQueue" GROUP BY 1')) == {"completed": 1, "failed": 1}
    assert crm.execute('SELECT "usageCount" FROM "CallScript"') == [(1,)]
    assert crm.value("""SELECT count(*) FROM "Tenant" WHERE status = 'SUSPENDED'""") == 1
    assert crm.value('SELECT count(*) FROM "User" WHERE NOT "isActive"') == 1
    assert {REMINDED, OWNER} <= world.counts("smtp").keys()
    assert crm.value("SELECT count(*) FROM worker.failure") == 2
    assert crm.value("SELECT count(*) FROM worker.suppression WHERE source = 'bounce'") >= 3


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
