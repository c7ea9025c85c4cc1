"""Invented people: names, companies, e-mail addresses under .example and Indian mobile numbers."""

import re
from dataclasses import dataclass

_FIRST_NAMES = """
Aarav Priya Rohan Ananya Vikram Kavya Arjun Meera Rahul Lakshmi Sanjay Divya Karthik Pooja Amit Nisha Imran Fatima
Gurpreet Harleen Joseph Maria Tenzin Bhavna
"""
_LAST_NAMES = """
Sharma Patel Iyer Reddy Singh Nair Gupta Mukherjee Joshi Kulkarni Khan Fernandes Chatterjee Rao Pillai Desai Bose
Menon Kaur Verma Banerjee Shetty Das
"""
_FIRST, _LAST = _FIRST_NAMES.split(), _LAST_NAMES.split()
_DOMAINS = ["kirana", "textiles", "motors", "sweets", "tools", "pharma", "travels"]

SQL_PARAMETERS = {"first_names": _FIRST, "last_names": _LAST, "domains": _DOMAINS}

# The same people as those of fake_person(), in one statement: a million rows take seconds.
RECIPIENTS_SQL = """
INSERT INTO "CampaignRecipient" (id, "tenantId", "campaignId", "recipientType", "recipientId", "recipientName",
                                 "recipientEmail", "recipientPhone", "updatedAt")
SELECT md5(%(seed)s || n)::uuid::text, campaign."tenantId", campaign.id, 'lead',
       md5(%(seed)s || 'lead' || n)::uuid::text,
       first_name || ' ' || last_name,
       lower(first_name || '.' || last_name) || '.' || n || '@' || domain || '.example',
       '+91' || (7000000000 + n),
       date_trunc('milliseconds', now() AT TIME ZONE 'UTC')
FROM "Campaign" AS campaign
CROSS JOIN generate_series(0, %(last)s::bigint) AS n
CROSS JOIN LATERAL (SELECT (%(first_names)s)[n %% cardinality(%(first_names)s) + 1] AS first_name,
                           (%(last_names)s)[n %% cardinality(%(last_names)s) + 1] AS last_name,
                           (%(domains)s)[n %% cardinality(%(domains)s) + 1] AS domain) AS person
WHERE campaign.id = %(campaign)s
"""


@dataclass(frozen=True)
class FakePerson:
    name: str
    email: str
    phone: str
    company: str


def fake_person(number: int) -> FakePerson:
    """The person with this number; two numbers never have the same address or phone."""
    first, last = _FIRST[number % len(_FIRST)], _LAST[number % len(_LAST)]
    domain = _DOMAINS[number % len(_DOMAINS)]
    return FakePerson(
        name=f"{first} {last}",
        email=f"{first}.{last}.{number}@{domain}.example".lower(),
        phone=f"+91{7_000_000_000 + number}",
        company=f"{last} {domain.title()}",
    )


def slug(name: str) -> str:
    """A name as part of an address: lower case, with '-' for anything except letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
