"""What the CRM and operators do with the list of suppressed addresses, for tests."""

from typing import Any

from sandbox.crm import Crm

SOURCES = ("unsubscribe", "bounce", "complaint", "provider", "operator", "import")


def suppress(crm: Crm, tenant: str, channel: str, address: str, source: str = "operator", **more: Any) -> bool:
    return bool(
        crm.value(
            "SELECT worker.suppress(%s, %s, %s, %s, %s, %s)",
            tenant, channel, address, more.get("reason", "STOP"), source, more.get("until"),
        )
    )  # fmt: skip


def unsuppress(crm: Crm, tenant: str, channel: str, address: str, source: str | None = None) -> bool:
    return bool(crm.value("SELECT worker.unsuppress(%s, %s, %s, %s)", tenant, channel, address, source))
