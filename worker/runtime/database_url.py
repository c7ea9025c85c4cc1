"""DATABASE_URL: what libpq takes of it, and what only the CRM's Node.js client and we read.

It may name several hosts: ``postgresql://user:password@db1:5432,db2:5432/crm?target_session_attrs=read-write``
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS).
"""

from dataclasses import dataclass, field
from urllib.parse import unquote

import psycopg2
import psycopg2.extensions

from worker.errors import SettingsError

# Parameters that the CRM's Node.js client adds to DATABASE_URL and libpq does not know.
_NODE_ONLY = {"schema", "connection_limit", "pool_timeout", "pgbouncer", "sslaccept", "socket_timeout"}
_POOLED = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """``pooled``: whether each transaction may run in another session; None: the URL does not say so."""

    libpq: str = field(repr=False)
    schema: str | None
    pooled: bool | None


def parse_database_url(url: str) -> DatabaseUrl:
    """Raises SettingsError, whose text has nothing of the URL."""
    libpq, parameters = _split(url)
    try:
        port = psycopg2.extensions.parse_dsn(libpq).get("port", "")
    except psycopg2.ProgrammingError:
        port = "unknown"
    # libpq's error texts quote the part that is wrong, which may be a piece of the password
    if not all(each == "" or (each.isdecimal() and 0 < int(each) < 65536) for each in str(port).split(",")):
        raise SettingsError(
            "DATABASE_URL cannot be read by PostgreSQL's client library: check its user, password "
            "(percent-encode special characters), host, port and parameters"
        )
    pooled = parameters.get("pgbouncer")
    if pooled not in (None, *_POOLED):
        raise SettingsError(
            "DATABASE_URL: pgbouncer is true for a pooler in transaction mode, false for one in session mode"
        )
    return DatabaseUrl(libpq, parameters.get("schema"), None if pooled is None else _POOLED[pooled])


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL without the parameters that libpq does not know, letter by letter, and these parameters."""
    address, _, query = url.partition("?")
    pairs = [pair for pair in query.split("&") if pair]  # not decoded: libpq decodes percent signs, but no plus
    kept = [pair for pair in pairs if pair.partition("=")[0] not in _NODE_ONLY]
    node_only = {name: unquote(value) for name, _, value in (pair.partition("=") for pair in reversed(pairs))}
    return "?".join(filter(None, [address, "&".join(kept)])), node_only
