"""The demo of quickstart: an e-mail and a WhatsApp campaign that are due now, and work for the other jobs."""

from contextlib import closing
from dataclasses import dataclass

from sandbox import demo_jobs
from sandbox.crm import Crm, apply_schema, has_schema, utc_now
from sandbox.stage import Stage
from worker.runtime.migrations import migrate

EMAILS, WHATSAPPS = 500, 200
REFUSED = "nobody.here@refused.example"
EMAIL_NAME, WHATSAPP_NAME = "Diwali offers by e-mail", "Diwali offers on WhatsApp"


@dataclass(frozen=True)
class Show:
    """What there is to watch."""

    email_id: str
    whatsapp_id: str
    refused: str = REFUSED

    @property
    def campaigns(self) -> dict[str, str]:
        return {"E-mail": self.email_id, "WhatsApp": self.whatsapp_id}


def prepare(stage: Stage) -> Show:
    """Makes the demo's data, or finds those of an earlier start."""
    show = None if stage.make_database() else _of_an_earlier_start(stage)
    if show is None:
        stage.make_database_anew()
        stage.world.reset()  # nothing was sent from this database yet
        show = _made(stage)
    stage.world.clear_script()
    stage.world.script("smtp", REFUSED, stage="rcpt", status=550, text="5.1.1 No such user here")
    return show


def _of_an_earlier_start(stage: Stage) -> Show | None:
    """None when its tables are of another release, or the earlier start was ended before its data were complete."""
    with closing(stage.connect()) as connection, connection.cursor() as cursor:
        if not has_schema(connection):
            return None
        migrate(connection)
        cursor.execute("""SELECT channel, id FROM "Campaign" WHERE status <> 'draft'""")
        ids = dict(cursor.fetchall())
    return Show(ids["email"], ids["whatsapp"]) if len(ids) == 2 else None


def _made(stage: Stage) -> Show:
    with closing(stage.connect()) as connection:
        apply_schema(connection)
        migrate(connection)
        crm = Crm(connection)
        email_id = crm.add_campaign("email", recipients=EMAILS - 1, status="draft", name=EMAIL_NAME)
        crm.add_recipient(email_id, recipientName="Nobody", recipientEmail=REFUSED)
        crm.execute("""UPDATE "Campaign" SET "totalRecipients" = %s WHERE id = %s""", (EMAILS, email_id))
        whatsapp_id = crm.add_campaign("whatsapp", recipients=WHATSAPPS, status="draft", name=WHATSAPP_NAME)
        demo_jobs.prepare(crm)
        # both at once and last: an earlier start that did not come this far is seen to be incomplete
        now = utc_now()
        crm.execute(
            """UPDATE "Campaign" SET status = 'scheduled', "scheduledAt" = %s, "updatedAt" = %s""", (now, now)
        )
    return Show(email_id, whatsapp_id)
