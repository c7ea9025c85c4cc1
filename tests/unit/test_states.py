"""The states of campaigns, recipients and calls: the same in the code, in the drawing's tables and in the SQL."""

import re
from enum import StrEnum
from importlib import resources
from pathlib import Path

import pytest

from worker.campaigns.states import (
    CALL_MOVES,
    CAMPAIGN_MOVES,
    RECIPIENT_MOVES,
    CallState,
    CampaignState,
    RecipientState,
)
from worker.runtime.db import queries

PAGE = Path(__file__).parents[2] / "docs" / "states.md"
TABLES = {
    "Campaign": (CampaignState, CAMPAIGN_MOVES),
    "CampaignRecipient": (RecipientState, RECIPIENT_MOVES),
    "CallQueue": (CallState, CALL_MOVES),
}
# What an UPDATE of this name can find in the rows it writes, where its own WHERE does not say it.
FOUND = {
    ("settle", "CampaignRecipient"): {"sending"},
    ("finish", "Campaign"): {"running"},
    ("book", "CallQueue"): {"processing"},
}


def section(table: str) -> str:
    """The part of the page about this table."""
    return next(part for part in PAGE.read_text("utf-8").split("\n## ") if f'(`"{table}".status`)' in part)


def moves_of_the_page(table: str) -> set[tuple[str, str]]:
    rows = re.findall(r"^\| (\w+) \| (\w+) \| .+\|$", section(table), flags=re.MULTILINE)
    assert rows[0] == ("from", "to")
    return set(rows[1:])


@pytest.mark.parametrize("table", TABLES)
def test_the_page_and_the_code(table: str) -> None:
    """The tables of docs/states.md have exactly the moves that the worker makes."""
    assert moves_of_the_page(table) == {(str(old), str(new)) for old, new in TABLES[table][1]}


@pytest.mark.parametrize("table", TABLES)
def test_every_state_is_drawn(table: str) -> None:
    """Every state there is stands in the page's drawing of its table."""
    drawing = section(table).split("```")[1]
    assert {str(state) for state in TABLES[table][0]} <= set(re.findall(r"[a-z]+", drawing))


def test_no_way_back() -> None:
    """Nothing leaves an end: what was sent stays sent, and a campaign that ended does not run again by itself."""
    assert {old for old, _ in RECIPIENT_MOVES} == {RecipientState.PENDING, RecipientState.SENDING}
    assert {old for old, _ in CAMPAIGN_MOVES} == {CampaignState.SCHEDULED, CampaignState.RUNNING}
    assert {old for old, _ in CALL_MOVES} == {CallState.PENDING, CallState.PROCESSING}


UPDATE = re.compile(
    r'UPDATE "(?P<table>Campaign|CampaignRecipient|CallQueue)" ?(?P<alias>\w*)\s+SET\s+(?P<set>.*?)\n\s*'
    r"(?=FROM |WHERE )(?P<rest>.*?)(?=RETURNING|;|\Z)",
    re.DOTALL,
)


def updates() -> list[tuple[str, str, str, str, str]]:
    """(query, table, its SET, its FROM and WHERE, the whole) of every UPDATE of these tables in worker/sql."""
    found = []
    for path in resources.files("worker").joinpath("sql").iterdir():
        if path.name.endswith(".sql"):
            for name, statement in queries(path.name.removesuffix(".sql")).items():
                bare = re.sub(r"--.*", "", statement)
                assert len(re.findall(r'UPDATE "(?:Campaign|CampaignRecipient|CallQueue)"', bare)) == len(
                    UPDATE.findall(bare)
                ), name
                found += [(name, hit["table"], hit["set"], hit["rest"], statement) for hit in UPDATE.finditer(bare)]
    return found


def quoted(text: str) -> set[str]:
    return set(re.findall(r"'(\w+)'", text))


def new_states(table: str, assigned: str) -> set[str]:
    """The states that a SET writes; those a parameter brings are all a settlement may write."""
    value = re.search(r"(?<![\w\"])status = (CASE.*?END|'\w+'|[\w.]+)", assigned, flags=re.DOTALL)
    if value is None:
        return set()
    results = re.sub(r"WHEN.*?THEN", "", value[1], flags=re.DOTALL)
    known = {str(state) for state in TABLES[table][0]}
    return quoted(results) & known or {"sent", "failed", "pending"}


def old_states(name: str, table: str, rest: str, statement: str) -> set[str]:
    """The states of the rows that an UPDATE may write to, as its conditions say."""
    said = re.findall(r"status(?: \|\| '')? = '(\w+)'", rest)
    if said:
        return set(said)
    if f'FROM "{table}"\n    WHERE status = ' in statement:  # chosen and locked by the statement's first part
        return set(re.findall(r"WHERE status = '(\w+)'", statement))
    return FOUND[name, table]


def test_every_update_is_a_legal_move() -> None:
    """Every UPDATE of a status in worker/sql makes only moves of the tables, and says from which state."""
    moves = {table: {(str(old), str(new)) for old, new in legal} for table, (_, legal) in TABLES.items()}
    made: dict[str, set[tuple[str, str]]] = {table: set() for table in TABLES}
    for name, table, assigned, rest, statement in updates():
        written = new_states(table, assigned)
        if written:
            old = old_states(name, table, rest, statement)
            made[table] |= {(before, after) for before in old for after in written if before != after}
    assert made == moves


def test_every_update_sets_updated_at() -> None:
    """Nobody but the one who writes a row sets its "updatedAt": every UPDATE of the CRM's tables does."""
    found = updates()
    assert len(found) >= 8
    for name, table, assigned, *_ in found:
        assert '"updatedAt" = %(now)s' in assigned, f"{name} updates {table} without it"


@pytest.mark.parametrize("states", [CampaignState, RecipientState, CallState])
def test_states_are_the_columns_texts(states: type[StrEnum]) -> None:
    """A state compares equal to the text in the column, and prints as it."""
    assert all(state == state.value == str(state) for state in states)
