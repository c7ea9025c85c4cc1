"""Digests that WhatsApp refuses: what an operator can do, and which of them the next tick need not try."""

from worker.content.whatsapp import TemplateName
from worker.sending.outcomes import Outcome, OutcomeKind

OUTSIDE_24_HOURS = "131047"  # the person has not written to the number for so long: only a template arrives
# the tenant's account has no such template, with other parameters, not approved, or not in use
TEMPLATE_CODES = {"132000", "132001", "132007", "132008", "132012", "132015", "132016"}


def explained(outcome: Outcome, template: TemplateName | None) -> str | None:
    """Why a digest was not sent, and what to do where that is known. ``template``: REMINDER_WHATSAPP_TEMPLATE."""
    advice = _advice(outcome.code, template)
    return f"{outcome.reason}; {advice}" if advice else outcome.reason


def is_for_long(outcome: Outcome) -> bool:
    """Whether it would be refused at the next tick, too: an opt-out, or a limit of what this person gets."""
    return outcome.kind is OutcomeKind.OPTED_OUT or outcome.max_attempts is not None


def _advice(code: str, template: TemplateName | None) -> str:
    if template is None:
        return "set REMINDER_WHATSAPP_TEMPLATE=name:language" if code == OUTSIDE_24_HOURS else ""
    if code not in TEMPLATE_CODES:
        return ""
    return (
        f"REMINDER_WHATSAPP_TEMPLATE is {template.name}:{template.language}: the tenant's WhatsApp account needs "
        "this template, approved, with two parameters in its body: number of leads, company"
    )
