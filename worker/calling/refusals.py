"""What it means when the database does not carry out a statement about one call.

    unavailable (runtime/db.py)   the server is lost or takes no writes: the same statement is run again later
    passing                       a lock or another transaction was in the way: it is run again
    of the row                    a constraint, a limit or a trigger refuses what it would write, and always will
    all others                    the program does not fit the schema, or has too few rights: no fault of the row

Source of the SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg2

from worker.content.one_line import one_line
from worker.runtime.db import is_unavailable

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

LONGEST_REASON = 200  # characters

_VANISHED_REFERENCE_CODE = "23503"
_ROLLBACK_CLASS = "40"  # a deadlock, or a conflict with another transaction
_PASSING = (_ROLLBACK_CLASS, "55P03", "57014")  # no lock was granted, or a time limit was reached
_PROGRAM_CLASS = "42"  # a table or column is missing, or a right


def is_passing(error: psycopg2.Error) -> bool:
    """Whether a lock or another transaction was in the way."""
    return (error.pgcode or "").startswith(_PASSING)


def is_race(error: psycopg2.Error) -> bool:
    """Whether the same statement, run again at once, will see what another transaction did meanwhile."""
    code = error.pgcode or ""
    return code == _VANISHED_REFERENCE_CODE or code.startswith(_ROLLBACK_CLASS)


def concerns_row(error: psycopg2.Error) -> bool:
    """Whether statements about other rows can be expected to work."""
    code = error.pgcode or ""
    return not (is_unavailable(error) or is_passing(error) or code.startswith(_PROGRAM_CLASS))


def reason_of(error: psycopg2.Error) -> str:
    """The error in one line; not its details, which may hold phone numbers."""
    return one_line(error.diag.message_primary or type(error).__name__, LONGEST_REASON)


def isolated(
    items: Sequence[_Item],
    run: Callable[[Sequence[_Item]], list[_Result]],
    refused: Callable[[_Item, psycopg2.Error], object],
) -> list[_Result]:
    """The results of ``run`` for all items together or, when the row of one is refused, for each of them alone.

    ``run`` writes all of its items or none. ``refused`` is called for each item that is refused alone.
    """
    try:
        return run(items)
    except psycopg2.Error as error:
        if not concerns_row(error):
            raise
        if len(items) == 1:
            refused(items[0], error)
            return []
    return [result for item in items for result in isolated([item], run, refused)]
