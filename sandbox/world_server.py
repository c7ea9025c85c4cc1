"""The process behind python -m sandbox.world: the inbox, the providers' stand-ins and the control API in one loop."""

import asyncio
import signal
import ssl
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sandbox import control_api, gmail, twilio, whatsapp
from sandbox.http_server import Handler, Reply, Request, serve
from sandbox.received_store import ReceivedStore
from sandbox.smtp_inbox import SmtpAccess, SmtpInbox
from sandbox.stand_in_state import StandInState

RECEIVED = "received.sqlite3"


@dataclass(frozen=True)
class WorldOptions:
    """Where the stand-ins listen and how."""

    folder: Path
    smtp_port: int
    http_port: int
    smtp_tls: str = ""  # '', 'starttls' or 'implicit'
    certificate: Path | None = None  # PEM with the key, for TLS
    smtp_user: str = ""
    smtp_password: str = ""
    whatsapp_rate: float = whatsapp.USUAL_RATE
    twilio_rate: float = 0.0
    gmail_rate: float = 0.0


async def run(options: WorldOptions, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGTERM or SIGINT; ``ready`` is called when the ports are open."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with closing(ReceivedStore(options.folder / RECEIVED)) as received:
        state = StandInState(received)
        smtp_server = await SmtpInbox(state, _smtp_access(options)).serve(options.smtp_port)
        http_server = await serve(_router(state, options), options.http_port)
        ready()
        await stop.wait()
        for server in (smtp_server, http_server):
            server.close()


def _smtp_access(options: WorldOptions) -> SmtpAccess:
    context = None
    if options.smtp_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(options.certificate))
    return SmtpAccess(context, options.smtp_tls == "implicit", options.smtp_user, options.smtp_password)


def _router(state: StandInState, options: WorldOptions) -> Handler:
    gmail_api = gmail.Gmail(state)
    gmail_api.rate.change(options.gmail_rate)
    whatsapp_api = whatsapp.WhatsApp(state, options.whatsapp_rate)
    twilio_api = twilio.Twilio(state, options.twilio_rate)
    rates = {"whatsapp_rate": whatsapp_api.rate, "twilio_rate": twilio_api.rate, "gmail_rate": gmail_api.rate}
    handlers: list[tuple[str, Handler]] = [
        (whatsapp.PREFIX, whatsapp_api.handle),
        (gmail.MESSAGES, gmail_api.handle),
        (gmail.TOKEN, gmail.GoogleToken(state).handle),
        (twilio.PREFIX, twilio_api.handle),
        (control_api.PREFIX, control_api.ControlApi(state, rates).handle),
    ]

    async def route(request: Request) -> Reply:
        for prefix, handle in handlers:
            if request.path.startswith(prefix):
                return await handle(request)
        return Reply(404, {"error": f"no stand-in answers at {request.path}"})

    return route
