"""The process behind python -m sandbox.world: the inbox, the providers' stand-ins and the control API in one loop."""

import asyncio
import signal
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sandbox import control, gmail, twilio, whatsapp
from sandbox.http import Reply, Request, serve
from sandbox.mailbox import Mailbox, TwilioAccount
from sandbox.records import Records
from sandbox.stand import Stand

RECORDS = "received.sqlite3"


@dataclass(frozen=True)
class Options:
    """Where to listen and how."""

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


async def run(options: Options, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGTERM or SIGINT; ``ready`` is called when the ports are open."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with closing(Records(options.folder / RECORDS)) as records:
        stand = Stand(records)
        inbox = await Mailbox(stand, _line(options)).serve(options.smtp_port)
        stands = await serve(_router(stand, options), options.http_port)
        ready()
        await stop.wait()
        for server in (inbox, stands):
            server.close()


def _line(options: Options) -> TwilioAccount:
    context = None
    if options.smtp_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(options.certificate))
    return TwilioAccount(context, options.smtp_tls == "implicit", options.smtp_user, options.smtp_password)


def _router(stand: Stand, options: Options) -> Callable[[Request], Awaitable[Reply]]:
    mail, calls = gmail.Gmail(stand), twilio.Twilio(stand, options.twilio_rate)
    mail.rate.change(options.gmail_rate)
    chat = whatsapp.WhatsApp(stand, options.whatsapp_rate)
    rates = {"whatsapp_rate": chat.rate, "twilio_rate": calls.rate, "gmail_rate": mail.rate}
    handlers: list[tuple[str, Callable[[Request], Awaitable[Reply]]]] = [
        (whatsapp.PREFIX, chat.handle),
        (gmail.MESSAGES, mail.handle),
        (gmail.TOKEN, gmail.GoogleToken(stand).handle),
        (twilio.PREFIX, calls.handle),
        (control.PREFIX, control.Control(stand, rates).handle),
    ]

    async def route(request: Request) -> Reply:
        for prefix, handle in handlers:
            if request.path.startswith(prefix):
                return await handle(request)
        return Reply(404, {"error": f"nothing stands at {request.path}"})

    return route
