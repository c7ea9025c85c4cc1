"""What the database says about campaigns, held against what arrived."""

from dataclasses import dataclass
from pathlib import Path

from sandbox.crm import Crm
from sandbox.world import World

CHANNELS = {"smtp": "email", "gmail": "email", "whatsapp": "whatsapp"}  # the world's -> the campaign's


@dataclass(frozen=True)
class Books:
    """One test's CRM and world."""

    crm: Crm
    world: World
    state_dir: Path

    def status(self, campaign_id: str) -> str:
        return str(self.crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign_id))

    def ended(self, *campaign_ids: str) -> bool:
        """Whether all of the campaigns came to an end."""
        return all(self.status(each) in ("completed", "failed") for each in campaign_ids)

    def ended_early(self, *campaign_ids: str) -> bool:
        """As ``ended``; whoever waits 10 seconds for a batch in another's hands looks again at once."""
        self.crm.execute(
            """UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'
               WHERE next_batch_at > now() AT TIME ZONE 'UTC' + interval '2 s'"""
        )
        return self.ended(*campaign_ids)

    def sent(self, campaign_id: str) -> int:
        return self.crm.counts(campaign_id).get("sent", 0)

    def unconfirmed(self, campaign_id: str) -> int:
        return int(
            self.crm.value(
                """SELECT count(*) FROM "CampaignRecipient"
                   WHERE "campaignId" = %s AND status = 'failed' AND "errorMessage" LIKE 'Unconfirmed%%'""",
                campaign_id,
            )
        )

    def log(self, campaign_id: str) -> list[str]:
        """The actions of CampaignLog in their order."""
        statement = """SELECT action FROM "CampaignLog" WHERE "campaignId" = %s ORDER BY "createdAt", action DESC"""
        return [action for (action,) in self.crm.execute(statement, (campaign_id,))]

    def last_log(self, campaign_id: str) -> str:
        """The newest message of CampaignLog."""
        statement = """SELECT message FROM "CampaignLog" WHERE "campaignId" = %s ORDER BY "createdAt" DESC LIMIT 1"""
        return str(self.crm.value(statement, campaign_id))

    def held(self) -> int:
        """How many batches are claimed now."""
        return int(self.crm.value("SELECT count(*) FROM worker.campaign_batch"))

    def journals(self) -> list[Path]:
        """The journals that hold something; a kill in the middle of a claim may leave an empty one for a while."""
        return [path for path in self.state_dir.rglob("*.journal") if path.read_bytes().strip(b"\0")]

    def nobody_twice(self, *channels: str) -> None:
        for channel in channels:
            assert self.world.duplicates(channel) == {}

    def balance(self, campaign_id: str, channel: str = "smtp", *, kills: int = 0) -> int:
        """Nobody twice, nobody left out, every table in order; returns how many were unconfirmed.

        A kill just after a settlement leaves the batch's journal, for an hour: at most two for each.
        """
        self.nobody_twice(channel)
        arrived = self.world.counts(channel)
        address = 'lower("recipientEmail")' if CHANNELS[channel] == "email" else "ltrim(\"recipientPhone\", '+')"
        rows = self.crm.execute(
            f'SELECT {address}, status, "errorMessage" FROM "CampaignRecipient" WHERE "campaignId" = %s',
            (campaign_id,),
        )
        sent = {each for each, status, _ in rows if status == "sent"}
        lost = {each for each, status, error in rows if status == "failed" and error.startswith("Unconfirmed")}
        assert sent | lost == {each for each, _, _ in rows}, self.crm.counts(campaign_id)
        assert sent - arrived.keys() == set(), "sent, but nothing arrived"
        self._counts(campaign_id, len(sent), len(lost))
        if CHANNELS[channel] == "email":
            statement = """SELECT "to"[1] FROM "EmailLog" WHERE "entityId" = %s ORDER BY 1"""
            assert [to.lower() for (to,) in self.crm.execute(statement, (campaign_id,))] == sorted(sent)
        self._nothing_left()
        assert len(self.journals()) <= 2 * kills
        return len(lost)

    def _counts(self, campaign_id: str, sent: int, lost: int) -> None:
        statement = """SELECT status, "sentCount", "failedCount", "completedAt" IS NOT NULL FROM "Campaign"
                       WHERE id = %s"""
        assert self.crm.execute(statement, (campaign_id,)) == [("completed", sent, lost, True)]
        assert self.log(campaign_id) == ["started", "completed"]
        assert self.last_log(campaign_id) == f"Completed: {sent} sent, {lost} failed"

    def _nothing_left(self) -> None:
        for table in ("campaign_batch", "batch_progress", "campaign_run", "campaign_retry", "unconfirmed_send"):
            assert self.crm.value(f"SELECT count(*) FROM worker.{table}") == 0, table
