"""The queued calls of one test, held against what Twilio received."""

from dataclasses import dataclass

from sandbox.crm import Crm
from sandbox.world import World


@dataclass(frozen=True)
class Queue:
    """The calls of one test, in the database and at Twilio."""

    crm: Crm
    world: World

    def add(self, count: int, *, slots: int = 1000, account_sid: str = "") -> None:
        """So many due calls, of several tenants with one account each, or all with this one."""
        place = int(self.crm.value('SELECT count(*) FROM "CallQueue"'))
        for tenant in range(4):
            tenant_id = self.crm.add_tenant()
            sid = account_sid or f"AC{place + tenant:032x}"
            self.crm.add_call_settings(tenant_id, twilioAccountSid=sid, maxConcurrentCalls=slots)
            for number in range(place + tenant, place + count, 4):
                self.crm.add_call(tenant_id, phoneNumber=f"+9198{number:08d}")

    def statuses(self) -> dict[str, int]:
        return dict(self.crm.execute('SELECT status, count(*) FROM "CallQueue" GROUP BY 1'))

    def claims(self) -> int:
        return int(self.crm.value("SELECT count(*) FROM worker.call_claim"))

    def unconfirmed(self) -> int:
        """How many calls Twilio will be asked about."""
        return int(self.crm.value("SELECT count(*) FROM worker.call_claim WHERE ask_at IS NOT NULL"))

    def ask_now(self) -> None:
        """Twilio may be asked about unconfirmed calls at once, and retries are due."""
        now = "now() AT TIME ZONE 'UTC'"
        self.crm.execute(f"UPDATE worker.call_claim SET ask_at = {now} WHERE ask_at > {now}")
        self.crm.execute(f"""UPDATE "CallQueue" SET "nextRetryAt" = {now} WHERE "nextRetryAt" > {now}""")

    def ended(self) -> bool:
        return set(self.statuses()) == {"completed"} and self.claims() == 0

    def ended_early(self) -> bool:
        """As ``ended``, without the half minute before Twilio is asked."""
        self.ask_now()
        return self.ended()

    def balance(self, count: int) -> None:
        """Each number was called once, and each row is linked to the CallLog row of that call."""
        assert self.world.duplicates("twilio") == {}
        assert (self.statuses(), self.claims()) == ({"completed": count}, 0)
        booked = self.crm.execute(
            """SELECT q."phoneNumber", l."twilioCallSid" FROM "CallQueue" q JOIN "CallLog" l
               ON l.id = q."callLogId" AND l."tenantId" = q."tenantId" AND l."phoneNumber" = q."phoneNumber" """
        )
        placed = {f"+{call.address}": call.external_id for call in self.world.deliveries("twilio")}
        assert dict(booked) == placed
        assert len(placed) == len(booked) == self.crm.value('SELECT count(*) FROM "CallLog"') == count
