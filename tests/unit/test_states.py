"""The states of campaigns, recipients and calls: docs/states.md has all moves that the worker makes, and no other."""

import re
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from itertools import product
from pathlib import Path

import pytest

from worker.campaigns.batch import Recipient
from worker.campaigns.settlement import RecipientPolicy
from worker.campaigns.states import RecipientState
from worker.messages import Accepted
from worker.runtime.db import queries
from worker.runtime.settings import load
from worker.sending.outcomes import Outcome, OutcomeKind

PAGE = Path(__file__).parents[2] / "docs" / "states.md"
TABLES = ("Campaign", "CampaignRecipient", "CallQueue")
SET_BY_THE_CRM = {
    "Campaign": {"draft", "paused"},
    "CampaignRecipient": {"delivered", "opened"},
    "CallQueue": {"cancelled"},
}
# The ways back from an end: a retry, and the breaker for refusals.
BACK = {
    "Campaign": {("completed", "scheduled"), ("failed", "scheduled")},
    "CampaignRecipient": {("failed", "pending"), ("sent", "failed")},
}
# What an UPDATE of this name can find in the rows it writes, where its own WHERE does not say it.
FOUND = {
    ("settle", "CampaignRecipient"): {"sending"},
    ("finish", "Campaign"): {"running"},
    ("set_back", "Campaign"): {"completed", "failed"},
    ("book", "CallQueue"): {"processing"},
    ("book_without_references", "CallQueue"): {"processing"},
}
NOW = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it


def section(table: str) -> str:
    """The part of the page about this table."""
    return next(part for part in PAGE.read_text("utf-8").split("\n## ") if f'(`"{table}".status`)' in part)


def moves_of_the_page(table: str) -> set[tuple[str, str]]:
    rows = re.findall(r"^\| (\w+) \| (\w+) \| .+\|$", section(table), flags=re.MULTILINE)
    assert rows[0] == ("from", "to")
    return set(rows[1:])


def words_of_the_drawing(table: str) -> set[str]:
    return set(re.findall(r"[a-z]+", section(table).split("```")[1]))


@pytest.mark.parametrize("table", TABLES)
def test_the_drawing_and_its_table(table: str) -> None:
    """Every state stands in the drawing; what only the CRM sets is in no move of the worker's."""
    moves = moves_of_the_page(table)
    assert {state for move in moves for state in move} | SET_BY_THE_CRM[table] <= words_of_the_drawing(table)
    assert not {new for _, new in moves} & SET_BY_THE_CRM[table]


def test_every_state_of_a_recipient() -> None:
    """What the worker writes for a recipient is drawn; a state equals the text in the column, and prints as it."""
    assert {str(state) for state in RecipientState} <= words_of_the_drawing("CampaignRecipient")
    assert all(state == state.value == str(state) for state in RecipientState)


@pytest.mark.parametrize(
    ("table", "ends"),
    [
        ("Campaign", {"completed", "failed"}),
        ("CampaignRecipient", {"sent", "failed"}),
        ("CallQueue", {"completed", "failed"}),
    ],
)
def test_no_way_back(table: str, ends: set[str]) -> None:
    """No move leaves an end: what was sent stays sent, and a campaign that ended does not run again by itself.

    But for an operator's retry, for recipients who failed through no fault of theirs, and for what was sent and not
    delivered, as a report says later.
    """
    left = {move for move in moves_of_the_page(table) if move[0] in ends}
    assert left == BACK.get(table, set())


def states_of_settlements() -> set[str]:
    """Every state in which the real policy leaves a recipient that a batch holds."""
    outcomes = [
        Outcome(kind, NOW, "reason", delay, Accepted("<m@x>") if kind is OutcomeKind.ACCEPTED else None)
        for kind, delay in product(OutcomeKind, (None, 60.0))
    ]
    states = set()
    for unconfirmed_sends, attempts in product(("fail", "resend"), ("1", "3")):
        environ = {
            "DATABASE_URL": "postgresql://crm@127.0.0.1/crm",
            "REDIS_URL": "redis://127.0.0.1",
            "UNCONFIRMED_SENDS": unconfirmed_sends,
            "CAMPAIGN_MAX_ATTEMPTS": attempts,
        }
        policy = RecipientPolicy(load(environ, "campaign"))
        for outcome, tried, can_ask in product(outcomes, range(4), (True, False)):
            recipient = Recipient("r-1", "Asha", "asha@a.example", None, tried)
            states.add(str(policy.settled(recipient, outcome, NOW, can_ask=can_ask).state))
    return states


def test_a_settlement_makes_the_moves_of_the_page() -> None:
    """From 'sending', after every outcome and with every setting, exactly the page's moves; or it stays 'sending'."""
    made = {("sending", state) for state in states_of_settlements() - {"sending"}}
    assert made == {move for move in moves_of_the_page("CampaignRecipient") if move[0] == "sending"}


@dataclass(frozen=True)
class Update:
    """One UPDATE of these tables in worker/sql."""

    query: str
    table: str
    assigned: str  # its SET
    rest: str  # its FROM and WHERE
    statement: str  # the whole query

    @property
    def new_states(self) -> set[str]:
        """The states that its SET writes; those of a settlement are a parameter."""
        value = re.search(r"(?<![\w\"])status = (CASE.*?END|'\w+'|[\w.]+)", self.assigned, flags=re.DOTALL)
        if value is None:
            return set()
        if (self.query, self.table) == ("settle", "CampaignRecipient"):
            assert value[1] == "o.status"
            return states_of_settlements() - {"sending"}
        written = quoted(re.sub(r"WHEN.*?THEN", "", value[1], flags=re.DOTALL))
        assert written, f"{self.query} takes a state of {self.table} from a parameter"
        return written

    @property
    def old_states(self) -> set[str]:
        """The states of the rows that it may write to, as its conditions say."""
        said = re.findall(r"status(?: \|\| '')? = '(\w+)'", self.rest)
        if said:
            return set(said)
        if f'FROM "{self.table}"\n    WHERE status = ' in self.statement:  # chosen and locked by its first part
            return set(re.findall(r"WHERE status = '(\w+)'", self.statement))
        return FOUND[self.query, self.table]


UPDATE = re.compile(
    r'UPDATE "(?P<table>Campaign|CampaignRecipient|CallQueue)" ?(?P<alias>\w*)\s+SET\s+(?P<set>.*?)\n\s*'
    r"(?=FROM |WHERE )(?P<rest>.*?)(?=RETURNING|;|\Z)",
    re.DOTALL,
)


def updates() -> list[Update]:
    """Every UPDATE of these tables."""
    found = []
    for path in resources.files("worker").joinpath("sql").iterdir():
        if path.name.endswith(".sql"):
            for name, statement in queries(path.name.removesuffix(".sql")).items():
                bare = re.sub(r"--.*", "", statement)
                assert len(re.findall(r'UPDATE "(?:Campaign|CampaignRecipient|CallQueue)"', bare)) == len(
                    UPDATE.findall(bare)
                ), name
                found += [
                    Update(name, hit["table"], hit["set"], hit["rest"], statement) for hit in UPDATE.finditer(bare)
                ]
    return found


def quoted(text: str) -> set[str]:
    return set(re.findall(r"'(\w+)'", text))


@pytest.mark.parametrize("table", TABLES)
def test_every_update_makes_moves_of_the_page(table: str) -> None:
    """The UPDATEs of a table's status in worker/sql make exactly the moves of the page, and say from which state."""
    made = {
        (before, after)
        for update in updates()
        if update.table == table and update.new_states
        for before in update.old_states
        for after in update.new_states
        if before != after
    }
    assert made == moves_of_the_page(table)


def test_every_update_sets_updated_at() -> None:
    """Only the program that writes a row can set its "updatedAt": every UPDATE of the CRM's tables does."""
    found = updates()
    assert len(found) >= 8
    for update in found:
        assert '"updatedAt" = %(now)s' in update.assigned, f"{update.query} updates {update.table} without it"
