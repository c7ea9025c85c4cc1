"""Makes the pictures of the status page in docs/images, from the real page while campaigns are running.

    python -m sandbox.page_pictures

It starts the world of bin/quickstart in a temporary folder, with larger campaigns and an hour of invented history.
All data on the pictures are fictional.
"""

import argparse
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from sandbox import demo_jobs
from sandbox.browser import Browser, BrowserError, opened
from sandbox.crm import Crm, apply_schema
from sandbox.demo import EMAIL_NAME, WHATSAPP_NAME
from sandbox.quickstart_environment import QuickstartEnvironment
from sandbox.servers import ServerFailed, ServerMissing
from worker.runtime.counters import Counters
from worker.runtime.migrations import migrate
from worker.runtime.redis_client import connect
from worker.web.counter_history import MINUTE_SECONDS, MINUTES, MinuteSample, store_sample

PROJECT = Path(__file__).resolve().parent.parent
EMAILS, WHATSAPPS = 4000, 1500
WIDTH = 1200
UNDER_WAY_SECONDS = 120.0  # within which both campaigns have sent a good part of their messages
HOST = "worker-1"  # shown instead of this machine's name
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

DESCRIPTION = "Makes the pictures of the status page in docs/images, from the real page while campaigns are running."
# both campaigns have a rate, a visible part of their messages is sent, and no job is about to start
UNDER_WAY = """
(() => {
  const bars = [...document.querySelectorAll("progress")];
  const rates = document.body.innerText.match(/ends about/g) ?? [];
  const waiting = !/was due|deferred/.test(document.body.innerText);
  return waiting && bars.length === 2 && rates.length === 2 && bars.every((bar) => bar.value > 0.3 * bar.max);
})()
"""
# the picture ends below the first row of charts
BOTTOM = "Math.ceil(document.querySelectorAll('.charts figure')[2].getBoundingClientRect().bottom) + 8"
RENAME_HOST = f"""
document.querySelectorAll('td[data-name="Lock holder"]').forEach((cell) => {{
  cell.textContent = cell.textContent.replace(/^.*(?=, pid)/, {HOST!r});
}})
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.page_pictures", description=DESCRIPTION)
    parser.add_argument("--folder", type=Path, default=PROJECT / "docs" / "images", help="where the pictures go")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    own_servers = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with tempfile.TemporaryDirectory(prefix="page-") as temporary:
        place = Path(temporary)
        place.chmod(0o755)  # PostgreSQL runs as another user when this runs as root
        environment = QuickstartEnvironment(PROJECT, place, own_servers)
        try:
            environment.start()
            _make_campaigns(environment)
            _make_history(environment)
            environment.start_programs()
            with opened(place) as browser:
                for path in _pictures(browser, environment.web_url + "/", folder):
                    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        except (ServerMissing, ServerFailed, BrowserError) as error:
            print(f"sandbox.page_pictures: {error}", file=sys.stderr)
            return 1
        finally:
            environment.stop()
    return 0


def _make_campaigns(environment: QuickstartEnvironment) -> None:
    """Campaigns that take a minute, and work for the other jobs."""
    environment.create_database()
    with closing(environment.connect()) as connection:
        apply_schema(connection)
        migrate(connection)
        crm = Crm(connection)
        crm.add_campaign("email", recipients=EMAILS, name=EMAIL_NAME)
        crm.add_campaign("whatsapp", recipients=WHATSAPPS, name=WHATSAPP_NAME)
        demo_jobs.prepare(crm)


def _make_history(environment: QuickstartEnvironment) -> None:
    """Counters and samples as if other campaigns had ended in the last hour."""
    if environment.redis is None:
        raise ServerFailed("the embedded Redis is needed: the history is written into it")
    with closing(connect(environment.redis.url)) as client:
        counters = Counters(client, "campaign")
        now = int(time.time() // MINUTE_SECONDS)
        totals = dict.fromkeys(("messages", "messages_failed", "calls", "calls_failed", "reminders"), 0.0)
        for age in range(MINUTES, 0, -1):
            store_sample(client, MinuteSample(now - age, dict(totals)))
            messages = 1900 + 40 * _varied(age, 11) if 22 <= age < 40 else 300 if 8 <= age < 13 else 0
            added = {"messages": messages, "messages_failed": messages // 60, "calls": _varied(age, 5)}
            totals = {name: total + added.get(name, 0) for name, total in totals.items()}
        counters.add("messages_total", totals["messages"], channel="email", outcome="sent")
        counters.add("messages_total", totals["messages_failed"], channel="email", outcome="failed")
        counters.add("calls_total", totals["calls"], outcome="placed")
        counters.flush()


def _varied(minute: int, below: int) -> int:
    """A number below ``below`` that differs from minute to minute, and is the same in each run."""
    return zlib.crc32(str(minute).encode()) % below


def _pictures(browser: Browser, url: str, folder: Path) -> Iterator[Path]:
    browser.open(url, width=WIDTH)
    browser.wait(UNDER_WAY, UNDER_WAY_SECONDS)
    for theme in ("light", "dark"):
        browser.theme(dark=theme == "dark")
        browser.run(RENAME_HOST)
        path = browser.screenshot(folder / f"status-{theme}.png", height=browser.run(BOTTOM))
        path.write_bytes(compressed(path.read_bytes()))
        yield path


def compressed(png: bytes) -> bytes:
    """The same picture with its pixels compressed as far as zlib can, and without optional chunks."""
    pixels, kept = b"", []
    for kind, data in _chunks(png):
        if kind == b"IDAT":
            pixels += data
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            kept.append((kind, data))
    kept += [(b"IDAT", zlib.compress(zlib.decompress(pixels), 9)), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(_chunk(kind, data) for kind, data in kept)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and data of each chunk (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    place = len(PNG_SIGNATURE)
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += length + 12


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


if __name__ == "__main__":
    sys.exit(main())
