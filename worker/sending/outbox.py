"""The CRM's outbox, the table "EmailLog": what is filed there of an e-mail that a provider accepted."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import psycopg2

from worker.messages import Accepted, EmailCopy

CHUNK_BYTES = 8 * 1024 * 1024  # what one statement files; a single e-mail may be larger


def json_chunks(records: Iterable[Mapping[str, Any]], chunk_bytes: int = CHUNK_BYTES) -> Iterator[str]:
    """Rows as JSON lists, each for one statement. Only one of the lists is in memory at a time."""
    chunk: list[bytes] = []
    size = 0
    for record in records:
        text = orjson.dumps(record)
        if chunk and size + len(text) > chunk_bytes:
            yield _json_list(chunk)
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield _json_list(chunk)


def _json_list(items: list[bytes]) -> str:
    """The items as one list; they are gone then, because two copies are enough."""
    text = b"[" + b",".join(items) + b"]"
    items.clear()
    return text.decode()


def is_refused_row(error: psycopg2.Error) -> bool:
    """Whether the database refuses a row as such: its references, its values, or its size (SQLSTATE 54...)."""
    return isinstance(error, psycopg2.IntegrityError | psycopg2.DataError) or (error.pgcode or "").startswith("54")


@dataclass(frozen=True, slots=True)
class OutboxEmail:
    """An e-mail to be filed once it is accepted: what it says, what it is about, and in whose outbox it belongs."""

    copy: EmailCopy
    address: str
    entity_type: str
    entity_id: str
    tenant_id: str
    user_id: str

    def record(self, accepted: Accepted, at: datetime) -> dict[str, str | datetime | None]:
        """Its row, by the names that sql/email_log.sql reads; ``at`` is UTC without a zone."""
        return {
            "address": self.address,
            "sender": self.copy.sender,
            "subject": self.copy.subject,
            "body": self.copy.body,
            "html": self.copy.html,
            "message_id": accepted.message_id,
            "gmail_id": accepted.gmail_message_id,
            "gmail_thread_id": accepted.gmail_thread_id,
            "entity_type": self.entity_type,
            "entity_id": self.entity_id,
            "at": at,
            "tenant_id": self.tenant_id,
            "user_id": self.user_id,
        }
