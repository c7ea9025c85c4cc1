"""The demo data of quickstart: an e-mail and a WhatsApp campaign that are due now, and work for the other jobs."""

from contextlib import closing
from dataclasses import dataclass

from sandbox import demo_jobs
from sandbox.crm import HTML, Crm, apply_schema, has_schema, utc_now
from sandbox.quickstart_environment import QuickstartEnvironment
from worker.runtime.migrations import migrate

EMAILS, WHATSAPPS = 500, 200
REFUSED = "nobody.here@refused.example"
UNSUBSCRIBE = '<p><a href="{{unsubscribe_url}}">Unsubscribe</a></p></body>'
EMAIL_NAME, WHATSAPP_NAME = "Diwali offers by e-mail", "Diwali offers on WhatsApp"


@dataclass(frozen=True)
class DemoCampaigns:
    """Their ids, and the address that the SMTP inbox refuses."""

    email_id: str
    whatsapp_id: str
    refused: str = REFUSED

    @property
    def by_name(self) -> dict[str, str]:
        return {"E-mail": self.email_id, "WhatsApp": self.whatsapp_id}


def prepare(environment: QuickstartEnvironment) -> DemoCampaigns:
    """Inserts the demo data, or finds those of an earlier start."""
    campaigns = None if environment.create_database() else _find(environment)
    if campaigns is None:
        environment.recreate_database()
        environment.world.reset()  # nothing was sent from this database yet
        campaigns = _insert(environment)
    environment.world.clear_script()
    environment.world.script("smtp", REFUSED, stage="rcpt", status=550, text="5.1.1 No such user here")
    return campaigns


def _find(environment: QuickstartEnvironment) -> DemoCampaigns | None:
    """None if its tables are of another release, or the earlier start ended before its data were complete."""
    with closing(environment.connect()) as connection, connection.cursor() as cursor:
        if not has_schema(connection):
            return None
        migrate(connection)
        cursor.execute("""SELECT channel, id FROM "Campaign" WHERE status <> 'draft'""")
        ids = dict(cursor.fetchall())
    return DemoCampaigns(ids["email"], ids["whatsapp"]) if len(ids) == 2 else None


def _insert(environment: QuickstartEnvironment) -> DemoCampaigns:
    with closing(environment.connect()) as connection:
        apply_schema(connection)
        migrate(connection)
        crm = Crm(connection)
        html = HTML.replace("</body>", UNSUBSCRIBE)
        email_id = crm.add_campaign(
            "email", recipients=EMAILS - 1, status="draft", name=EMAIL_NAME, htmlContent=html, textContent=""
        )
        crm.add_recipient(email_id, recipientName="Nobody", recipientEmail=REFUSED)
        crm.execute("""UPDATE "Campaign" SET "totalRecipients" = %s WHERE id = %s""", (EMAILS, email_id))
        whatsapp_id = crm.add_campaign("whatsapp", recipients=WHATSAPPS, status="draft", name=WHATSAPP_NAME)
        demo_jobs.prepare(crm)
        # both together and last: so data without them are known to be incomplete
        now = utc_now()
        crm.execute(
            """UPDATE "Campaign" SET status = 'scheduled', "scheduledAt" = %s, "updatedAt" = %s""", (now, now)
        )
    return DemoCampaigns(email_id, whatsapp_id)
