"""An SMTP server that records what it receives, and fails where a test asks for it.

In clear text, with STARTTLS, or with TLS from the first byte; with or without AUTH. It announces PIPELINING.
"""

import asyncio
import ssl
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from sandbox.failure_script import FailureRule, Stage
from sandbox.http_server import Reply
from sandbox.received_store import Received
from sandbox.stand_in_state import StandInState

_USUAL = {
    "auth": (535, "5.7.8 Authentication credentials invalid"),
    "mail": (550, "5.7.1 Sender refused"),
    "rcpt": (550, "5.1.1 No such user here"),
    "data": (554, "5.6.0 Content refused"),
}
_CLOSING = (421, "4.3.2 Service shutting down")
_LARGEST_BYTES = 33_554_432


@dataclass(frozen=True)
class SmtpAccess:
    """How clients connect to the inbox and log in."""

    tls: ssl.SSLContext | None = None
    implicit: bool = False  # TLS from the first byte; otherwise STARTTLS, which clients must then use
    user: str = ""  # '': no AUTH
    password: str = ""


class SmtpInbox:
    """The hooks that aiosmtpd calls."""

    def __init__(self, state: StandInState, access: SmtpAccess) -> None:
        self._state = state
        self._access = access

    async def serve(self, port: int) -> asyncio.Server:
        """Listens on 127.0.0.1."""
        loop = asyncio.get_running_loop()
        context = self._access.tls if self._access.implicit else None
        return await loop.create_server(self._protocol, "127.0.0.1", port, ssl=context, backlog=1024)

    def _protocol(self) -> Any:
        starttls = None if self._access.implicit else self._access.tls
        return SMTP(
            self,
            hostname="inbox.sandbox.example",
            ident="sandbox inbox",
            data_size_limit=_LARGEST_BYTES,
            tls_context=starttls,
            require_starttls=starttls is not None,
            auth_required=bool(self._access.user),
            auth_require_tls=starttls is not None,
            authenticator=self._authenticate,
            timeout=3600,
            loop=asyncio.get_running_loop(),
        )

    def _authenticate(
        self, server: Any, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        rule = self._state.script.take("smtp", [], "auth")
        if rule is not None:
            return AuthResult(success=False, handled=False, message=_reply(rule))
        valid = LoginPassword(self._access.user.encode(), self._access.password.encode())
        return AuthResult(success=data == valid, handled=False)

    async def handle_EHLO(
        self, server: Any, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_MAIL(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = await self._refusal(server, "mail", [address])
        if refusal:
            return refusal
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = await self._refusal(server, "rcpt", [address])
        if refusal:
            refused = Received("smtp", address, "refused", account=envelope.mail_from or "")
            self._state.refuse(Reply(int(refusal[:3])), refused)
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        message_id = str(BytesHeaderParser().parsebytes(content).get("Message-ID", "")).strip()
        sender = envelope.mail_from or ""
        messages = [
            Received("smtp", address, "accepted", sender, self._access.user, "", message_id, 250, "", content)
            for address in envelope.rcpt_tos
        ]
        rule = self._state.script.take("smtp", envelope.rcpt_tos, "data")
        if rule and rule.action in ("answer", "close", "cut-before"):
            refusal = await self._act(server, rule)
            self._state.refuse(Reply(int(refusal[:3])), *messages)
            return refusal
        if rule and rule.action == "cut-after":
            unanswered = [Received(**(vars(each) | {"outcome": "unanswered", "status": 0})) for each in messages]
            self._state.received.add(*unanswered)
            return await self._act(server, rule)
        self._state.received.add(*messages)
        if rule:
            await rule.hang()
        return "250 2.0.0 Ok: queued"

    async def _refusal(self, server: Any, stage: Stage, addresses: list[str]) -> str:
        rule = self._state.script.take("smtp", addresses, stage)
        return await self._act(server, rule) if rule else ""

    async def _act(self, server: Any, rule: FailureRule) -> str:
        """Does what a rule asks for; returns the reply, which is not sent on a cut connection."""
        if rule.action == "close":
            await server.push(_reply(rule))
            server.transport.close()
        elif rule.action != "answer":
            if rule.action == "cut-before":
                await rule.hang()
            server.transport.abort()
        return _reply(rule)


def _reply(rule: FailureRule) -> str:
    code, text = _CLOSING if rule.action == "close" else _USUAL[rule.stage]
    return f"{rule.status or code} {rule.text or text}"
