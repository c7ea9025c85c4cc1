"""The outside world in one process: an SMTP inbox and stand-ins of Gmail, Google's tokens, WhatsApp and Twilio.

    python -m sandbox.world --dir .sandbox/world --smtp-port 2525 --http-port 8025

runs it until SIGTERM. In Python, and from any process that knows its folder and ports:

    world = World(folder)
    world.start()
    world.script("whatsapp", "+919800000001", status=400, code=131026)
    world.counts("whatsapp")            # {"919800000002": 1, ...}

What was received is read from a file, so it can also be counted while the process is down.
"""

import argparse
import asyncio
import http.client
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from sandbox.ports import free_port
from sandbox.received_store import Received, ReceivedStore
from sandbox.servers import Child, ManagedServer
from sandbox.world_server import RECEIVED, WorldOptions, run

PROJECT = Path(__file__).resolve().parent.parent


class World(ManagedServer):
    """The process in ``folder``, and what it received."""

    def __init__(
        self,
        folder: Path,
        smtp_port: int | None = None,
        http_port: int | None = None,
        *,
        ca_file: Path | None = None,
        **options: Any,
    ) -> None:
        """Ports None: free ones. ``options``: fields of WorldOptions, such as smtp_tls, smtp_user, whatsapp_rate.

        With TLS clients trust ``ca_file``. Nothing is created before ``start``.
        """
        super().__init__()
        self.folder = folder.absolute()
        self.options = WorldOptions(self.folder, smtp_port or free_port(), http_port or free_port(), **options)
        self._ca_file = ca_file

    @property
    def smtp_url(self) -> str:
        """SMTP_URL for the worker."""
        options = self.options
        scheme = "smtps" if options.smtp_tls == "implicit" else "smtp"
        login = (
            f"{quote(options.smtp_user, safe='')}:{quote(options.smtp_password, safe='')}@"
            if options.smtp_user
            else ""
        )
        trusted = f"?{urlencode({'ca_file': self._ca_file})}" if self._ca_file else ""
        return f"{scheme}://{login}127.0.0.1:{options.smtp_port}{trusted}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.options.http_port}"

    @property
    def gmail_url(self) -> str:
        return self.http_url

    @property
    def token_url(self) -> str:
        return f"{self.http_url}/token"

    @property
    def whatsapp_url(self) -> str:
        return f"{self.http_url}/whatsapp/v26.0"

    @property
    def twilio_url(self) -> str:
        return f"{self.http_url}/twilio"

    @property
    def environment(self) -> dict[str, str]:
        """The worker's variables that lead here, where nobody sleeps: phones may ring at any hour."""
        return {
            "SMTP_URL": self.smtp_url,
            "GMAIL_API_URL": self.gmail_url,
            "GOOGLE_TOKEN_URL": self.token_url,
            "WHATSAPP_API_URL": self.whatsapp_url,
            "TWILIO_API_URL": self.twilio_url,
            "CALL_WINDOW": "00:00-24:00",
            "CALL_WINDOWS": "+1=00:00-24:00 +91=00:00-24:00",
        }

    def command(self) -> list[str]:
        """Runs it in the foreground, for supervisord, with the project as working directory."""
        values = vars(self.options)
        given = {name: value for name, value in values.items() if value not in ("", None)}
        given["dir"] = given.pop("folder")
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        return [sys.executable, "-m", "sandbox.world", *arguments]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._child = Child(self.command(), self.folder / "world.log", directory=PROJECT)
        self._child.wait_until(self.answers, "sandbox.world")

    def answers(self) -> bool:
        try:
            self._control("GET", "health")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def script(self, channel: str, address: str | None = None, action: str = "answer", **rule: Any) -> None:
        """Makes something fail from now on. ``rule``: further fields of FailureRule; ValueError: no such rule."""
        self._control("POST", "script", {"channel": channel, "address": address, "action": action} | rule)

    def clear_script(self, channel: str | None = None) -> None:
        """Removes the rules: nothing fails any more."""
        self._control("DELETE", f"script?channel={channel}" if channel else "script")

    def set_rates(self, **per_second: float) -> None:
        """whatsapp_rate (one phone id), twilio_rate (one account), gmail_rate (one token); 0: no limit."""
        self._control("POST", "settings", per_second)

    def revoke(self, credential: str) -> None:
        """A token, secret or password is refused from now on."""
        self._control("POST", "revoke", {"credential": credential})

    def set_call(self, sid: str, status: str) -> None:
        """Gives a call one of Twilio's statuses; ValueError: no such call or status."""
        self._control("POST", "call", {"sid": sid, "status": status})

    def forget_call(self, sid: str) -> None:
        """Twilio no longer knows the call; it still counts as received."""
        self._control("POST", "call", {"sid": sid, "status": None})

    def reset(self) -> None:
        """Nothing received, no rules, nothing revoked, the rates of the start."""
        self._control("POST", "reset", {})

    def deliveries(self, channel: str | None = None, address: str | None = None) -> list[Received]:
        """What was accepted, answered or not, in order."""
        with closing(self._open_store()) as store:
            return store.deliveries(channel, address)

    def refusals(self, channel: str | None = None, address: str | None = None) -> list[Received]:
        """What was refused or cut off unread, in order."""
        with closing(self._open_store()) as store:
            return store.refusals(channel, address)

    def counts(self, channel: str | None = None) -> Counter[str]:
        """How many deliveries each address (lower case, or digits) got."""
        with closing(self._open_store()) as store:
            return store.counts(channel)

    def duplicates(self, channel: str | None = None) -> dict[str, int]:
        """The addresses that got more than one delivery."""
        return {address: count for address, count in self.counts(channel).items() if count > 1}

    def total(self, channel: str | None = None) -> int:
        with closing(self._open_store()) as store:
            return store.total(channel)

    def email(self, address: str) -> EmailMessage:
        """The newest e-mail to an address, through SMTP or Gmail; KeyError if there is none."""
        found = [*self.deliveries("smtp", address), *self.deliveries("gmail", address)]
        if not found:
            raise KeyError(f"no e-mail to {address}")
        newest = max(found, key=lambda each: each.at)
        return message_from_bytes(newest.content, policy=policy.default)

    def wait_for(self, channel: str, count: int, seconds: float = 20.0) -> None:
        """Waits until there are ``count`` deliveries; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        with closing(self._open_store()) as store:
            while (came := store.total(channel)) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{came} of {count} {channel} deliveries within {seconds:g} s")
                time.sleep(0.005)

    def _open_store(self) -> ReceivedStore:
        return ReceivedStore(self.folder / RECEIVED)

    def _control(self, method: str, action: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.options.http_port, timeout=10)
        with closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, f"/control/{action}", content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        if response.status != 200:
            raise ValueError(answer.get("error", f"HTTP {response.status}"))
        return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stand-ins in the foreground until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.world", description="Stand-ins of the outside world.")
    parser.add_argument("--dir", dest="folder", type=Path, required=True, help="folder for what is received")
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--smtp-tls", choices=("starttls", "implicit"), default="", help="then clear text is refused")
    parser.add_argument("--certificate", type=Path, help="PEM file with certificate and key, for TLS")
    parser.add_argument("--smtp-user", default="", help="require AUTH with this user")
    parser.add_argument("--smtp-password", default="")
    rates = [each for each in fields(WorldOptions) if each.name.endswith("_rate")]
    for each in rates:
        name = each.name.replace("_", "-")
        parser.add_argument(f"--{name}", type=float, default=each.default, help="requests a second, 0: no limit")
    options = WorldOptions(**vars(parser.parse_args(arguments)))
    try:
        asyncio.run(run(options, lambda: print(f"listening: {options.smtp_port}, {options.http_port}", flush=True)))
    except OSError as error:
        print(f"sandbox.world: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
