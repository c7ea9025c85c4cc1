"""Numbers as WhatsApp itself reports them: 521 in Mexico, 549 in Argentina."""

import pytest
from one_run import OneRun

from sandbox.crm import Crm
from sandbox.world import World
from worker.campaign import CampaignJob

MEXICO, ARGENTINA = "5215512345678", "5491123456789"
WITHOUT = {MEXICO: "525512345678", ARGENTINA: "541123456789"}


def test_leads_are_written_to_under_the_id_that_whatsapp_reported(crm: Crm, world: World, run_once: OneRun) -> None:
    """However the CRM keeps it: normalised, or as somebody typed it, with a country code or without."""
    ids = [f"521551234567{digit}" for digit in range(4)] + [f"549112345678{digit}" for digit in range(4)]
    nothing = dict.fromkeys(("whatsappNormalized", "phoneNormalized", "whatsapp"))
    for number in ids:
        written: list[dict[str, str]] = [
            {"whatsappNormalized": number},
            {"whatsappNormalized": f"+{number}"},
            {"whatsapp": number, "phoneCountryCode": f"+{number[:2]}"},
            {"phone": f"+{number[:2]} {number[2]} {number[3:5]} {number[5:9]} {number[9:]}"},
        ]
        crm.add_lead(**nothing | written[int(number[-1])])
    campaign = crm.add_campaign("whatsapp", recipients=0, targetType="leads")
    assert run_once("campaign", CampaignJob) == 0
    assert crm.counts(campaign) == {"sent": len(ids)}
    assert world.counts("whatsapp") == dict.fromkeys(ids, 1)


@pytest.mark.parametrize("number", [MEXICO, ARGENTINA])
@pytest.mark.parametrize("listed_as_reported", [True, False])
def test_an_opt_out_holds_for_both_forms(
    crm: Crm, world: World, run_once: OneRun, number: str, listed_as_reported: bool
) -> None:
    """Who wrote STOP under the id, or is on the list without its 1 or 9, is written to in neither form."""
    listed = number if listed_as_reported else WITHOUT[number]
    crm.execute("SELECT worker.suppress(%s, 'whatsapp', %s, 'STOP', 'unsubscribe')", (crm.tenant_id, f"+{listed}"))
    campaigns = [
        crm.add_campaign("whatsapp", recipients=[{"recipientPhone": f"+{each}"}])
        for each in (number, WITHOUT[number])
    ]
    assert run_once("campaign", CampaignJob) == 0
    assert [crm.counts(each) for each in campaigns] == [{"failed": 1}] * 2
    assert world.total("whatsapp") == 0


@pytest.mark.parametrize("number", [MEXICO, ARGENTINA])
def test_both_forms_in_one_campaign_are_one_person(crm: Crm, world: World, run_once: OneRun, number: str) -> None:
    people = [{"recipientPhone": f"+{each}"} for each in (WITHOUT[number], number)]
    campaign = crm.add_campaign("whatsapp", recipients=people)
    assert run_once("campaign", CampaignJob) == 0
    assert crm.counts(campaign) == {"sent": 1, "failed": 1}
    assert world.total("whatsapp") == 1
