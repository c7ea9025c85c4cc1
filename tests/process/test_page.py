"""The status page in a real browser: while a campaign runs, with servers unavailable, both themes, on a phone."""

import re
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from email.message import Message
from itertools import product
from pathlib import Path

import pytest
import redis
from books import Books
from workers import ATTEMPTS, PROJECT, WAIT_SECONDS, Start, Worker, wait_for

from sandbox.browser import Browser
from sandbox.crm import Crm
from sandbox.ports import free_port
from sandbox.redis import Redis
from sandbox.world import World
from worker.runtime.counter_readings import GAUGES, CounterReadings, MetricValue
from worker.runtime.redis_client import connect
from worker.web.counter_history import (
    HISTORY_KEY,
    MINUTES,
    CounterSampler,
    last_hour,
    parse_samples,
    store_sample,
    take_sample,
)

TEMPLATES = PROJECT / "worker" / "web" / "templates"
TOKEN = "sesame-open"
NASTY = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&lt;b&gt; \u202e Diwali"
LONG = "A_name_without_any_space_" * 12
WIDE, PHONE = 1200, 390
CONTRAST_AA = 4.5  # https://www.w3.org/TR/WCAG22/#contrast-minimum
TAKES_SECONDS = 3.0


class Site:
    """A running bin/web that can be killed and started again on the same port."""

    def __init__(self, start: Start, **settings: str) -> None:
        self._start = start
        self._settings = {"PORT": str(free_port())} | settings
        self.url = f"http://127.0.0.1:{self._settings['PORT']}/"
        self.worker = self.open()

    def open(self) -> Worker:
        self.worker = self._start(program="web", **self._settings)
        wait_for(self._answers, "bin/web answers")
        return self.worker

    def get(self, path: str = "", **headers: str) -> tuple[int, Message, str]:
        request = urllib.request.Request(self.url + path, headers=headers)  # noqa: S310 - http only
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:  # noqa: S310 - http only
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def _answers(self) -> bool:
        try:
            return self.get("livez")[0] == 200
        except OSError:
            return False


OpenSite = Callable[..., Site]


@pytest.fixture
def open_site(start: Start) -> OpenSite:
    return lambda **settings: Site(start, **settings)


def test_while_a_campaign_runs(
    open_site: OpenSite, start: Start, crm: Crm, books: Books, browser: Browser, tmp_path: Path
) -> None:
    """Its progress grows on the page without a reload, in both themes, wide and on a phone, until it has ended."""
    campaigns = [
        crm.add_campaign(recipients=500, name=NASTY),
        crm.add_campaign("whatsapp", recipients=400, name=LONG),
    ]
    site = open_site()
    worker = start(CAMPAIGN_BATCH_SIZE="10", CAMPAIGN_BATCH_DELAY="600ms", program="campaign")
    wait_for(lambda: books.sent(campaigns[0]) > 0, "the campaign has begun")
    browser.open(site.url, width=WIDE)
    browser.wait("document.querySelectorAll('progress').length === 2")
    assert NASTY.split("\u202e")[0].strip() in browser.text(), "a tenant's text stays text"
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    grounds = set()
    for width, dark in product((WIDE, PHONE), (False, True)):
        browser.open(site.url, width=width, dark=dark)
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
        grounds.add((dark, browser.run("getComputedStyle(document.body).backgroundColor")))
        picture = browser.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(grounds) == len({ground for _, ground in grounds}) == 2, "each theme has its own background"
    seen = browser.run("window.kept = document.querySelector('progress').value")
    browser.wait(f"[...document.querySelectorAll('progress')].every(bar => bar.value > {seen})")
    assert browser.run("window.kept") == seen, "without a reload"
    browser.wait(r"/\d a (second|minute) · ends about \d\d:\d\d:\d\d/.test(document.body.innerText)")
    assert worker.stop() == 0
    start()
    wait_for(lambda: books.ended(*campaigns), "the campaigns are over")
    browser.wait("document.body.innerText.includes('No campaign is running')")
    assert "900 sent" in browser.text(), "they are in the chart of the last hour"
    assert browser.run("window.hacked") is None
    assert browser.complaints == []


def test_why_recipients_failed(open_site: OpenSite, start: Start, crm: Crm, world: World, browser: Browser) -> None:
    """A campaign that has just ended shows its failures by kind with the most frequent replies, which stay text."""
    world.script("smtp", "gone@a.example", stage="rcpt", status=550, text=f"5.1.1 {NASTY.split()[0]} {LONG}")
    campaign = crm.add_campaign(recipients=[{"recipientEmail": "gone@a.example"}], name=NASTY)
    assert start("--once", program="campaign").wait() == 0
    site = open_site()
    for width in (WIDE, PHONE):
        browser.open(site.url, width=width)
        browser.wait("document.querySelector('#failures') !== null")
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
    text = browser.text()
    assert f"bin/campaign failures {campaign}" in text
    assert "1 address" in text
    assert "550 5.1.1 <img" in text
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("window.hacked") is None
    assert browser.complaints == []


def test_nothing_that_is_written_into_it_can_run(open_site: OpenSite, browser: Browser) -> None:
    """If a template ever failed to escape a text, the browser itself would refuse to run or load it."""
    browser.open(open_site().url)
    for markup in ("<img src='data:,' onerror='window.hacked=1'>", "<iframe src='/livez'></iframe>"):
        browser.run(f'document.body.insertAdjacentHTML("beforeend", {markup!r})')
    browser.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked=1'}))")
    browser.run("document.body.append(Object.assign(document.createElement('style'), {textContent: '*{color:red}'}))")
    for directive in ("script-src", "style-src", "default-src"):
        wait_for(lambda d=directive: browser.text() and d in " ".join(browser.complaints), f"{directive} is refused")
    assert browser.run("window.hacked") is None
    assert browser.run("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"


def test_it_says_when_the_web_process_does_not_answer(open_site: OpenSite, browser: Browser) -> None:
    """It says of which time the shown state is; when the process is back, so is the page."""
    site = open_site()
    browser.open(site.url)
    assert browser.run("document.getElementById('note').hidden")
    site.worker.kill()
    browser.wait("!document.getElementById('note').hidden")
    assert "web process does not answer. This page shows the state of 20" in browser.text()
    site.open()
    browser.wait("document.getElementById('note').hidden")


def test_a_hidden_page_asks_for_nothing(open_site: OpenSite, browser: Browser, redis_client: redis.Redis) -> None:
    """A tab in the background makes no requests, and is refreshed as soon as it is visible again."""
    browser.open(open_site().url)
    browser.run(
        "window.asked = 0; window.fetch = ((real) => (...all) => { asked += 1; return real(...all) })(window.fetch)"
    )
    hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}}); "
    notify = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.run(hide.format("true") + notify)
    shown = browser.run("document.querySelector('main header time').textContent")
    browser.run("new Promise(resolve => setTimeout(resolve, 6000))")  # longer than from one request to the next
    assert browser.run("asked") == 0
    browser.run(hide.format("false") + notify)
    browser.wait(f"asked > 0 && document.querySelector('main header time').textContent !== {shown!r}")
    # hidden while a request is running: no further request is scheduled after it
    browser.run("document.querySelector('main').old = true; window.planned = 0; setTimeout = () => { planned += 1 }")
    browser.run(notify + "; " + hide.format("true"))
    browser.wait("!document.querySelector('main').old")
    assert browser.run("planned") == 0


def test_without_javascript(open_site: OpenSite, browser: Browser) -> None:
    """Everything is shown, and the browser itself reloads the page."""
    browser.do("Emulation.setScriptExecutionDisabled", value=True)
    site = open_site()
    browser.open(site.url)
    assert "Servers" in browser.text()
    loaded = browser.run("performance.timeOrigin")
    browser.wait(f"performance.timeOrigin > {loaded} && document.querySelector('main') !== null")


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_with_everything_down(
    open_site: OpenSite, new_redis: Callable[..., Redis], browser: Browser, width: int
) -> None:
    """It still answers in less than three seconds, names the servers, and says what is unknown."""
    server = new_redis()
    server.kill()

    def in_time(site: Site) -> bool:
        began = time.monotonic()
        assert site.get()[0] == 200
        return time.monotonic() - began < TAKES_SECONDS

    unavailable = {"REDIS_URL": server.url, "DATABASE_URL": f"postgresql://crm@127.0.0.1:{free_port()}/crm"}
    assert any(in_time(open_site(**unavailable)) for _ in range(ATTEMPTS))
    site = open_site(**unavailable)
    browser.open(site.url, width=width, dark=True)
    text = browser.text()
    for name in ("PostgreSQL", "Redis", "Qdrant"):
        assert f"{name} does not answer" in text
    assert text.count("Unknown:") == 4
    assert browser.run("document.title") == "Down – CRM worker"
    assert browser.complaints == []


def test_what_watchdog_and_jobs_reported(open_site: OpenSite, redis_client: redis.Redis, browser: Browser) -> None:
    """States of programs, the backlog, and the last error of a job, which stays text whatever it contains."""
    for program, state in (("campaign", 20), ("calls", 200)):
        redis_client.hset(GAUGES, f'program_state{{program="{program}"}}', state)
    redis_client.hset(GAUGES, 'program_bad_settings{program="campaign"}', 1)
    redis_client.hset(GAUGES, "campaign_pending_recipients", 1_234_567)
    redis_client.sadd("worker:jobs", "trial")
    reported = {
        "last_run": time.time() - 7300,
        "interval": 3600,
        "last_error": f"broken {NASTY}",
        "last_error_at": time.time(),
    }
    redis_client.hset("worker:job:trial", mapping=reported)
    browser.open(open_site().url, width=PHONE)
    text = browser.text()
    for said in ("calls failed to start", "campaign has bad settings", "trial has never succeeded", "1,234,567"):
        assert said in text, said
    assert "broken <img" in text
    assert browser.run("window.hacked") is None


def test_one_process_takes_the_sample_of_a_minute(redis_client: redis.Redis, redis_url: str) -> None:
    """Two web processes take one sample per minute; two minutes make two bars; an hour is kept."""
    client = connect(redis_url)
    now = [600.0]
    sent = [0]

    def readings() -> CounterReadings:
        return CounterReadings(
            [MetricValue("messages_total", {"channel": "email", "outcome": "sent"}, float(sent[0]))], [], {}
        )

    for minute, total in ((10, 5), (11, 25), (12, 32)):
        now[0], sent[0] = minute * 60.0 + 0.5, total
        for _ in range(2):
            store_sample(client, take_sample(readings(), now[0]))
    assert redis_client.llen(HISTORY_KEY) == 3
    samples = parse_samples(redis_client.lrange(HISTORY_KEY, 0, -1))
    assert [(each.minute, each.added["messages"]) for each in last_hour(samples, None)] == [
        (10, 20),
        (11, 7),
    ]
    for minute in range(13, 100):
        store_sample(client, take_sample(readings(), minute * 60.0))
    assert redis_client.llen(HISTORY_KEY) == MINUTES + 1
    taken = threading.Event()

    def clock() -> float:
        taken.set()
        return 6000.0

    sampler = CounterSampler(client, readings, clock)
    sampler.start()
    assert taken.wait(10)
    wait_for(
        lambda: '"minute": 100' in redis_client.lindex(HISTORY_KEY, 0),
        "the thread has taken a sample",
    )
    sampler.stop()


def test_the_web_process_keeps_the_history(open_site: OpenSite, redis_client: redis.Redis) -> None:
    """bin/web takes samples from its start, without any request; a restart continues the history."""
    site = open_site()
    wait_for(lambda: redis_client.llen(HISTORY_KEY) == 1, "the first sample")
    site.worker.stop()
    site.open()
    minutes = [each.minute for each in parse_samples(redis_client.lrange(HISTORY_KEY, 0, -1))]
    assert len(minutes) == len(set(minutes))


def test_the_token_guards_the_page(open_site: OpenSite) -> None:
    """As a bearer token, or as the password that a browser asks for."""
    site = open_site(METRICS_TOKEN=TOKEN)
    basic = b64encode(f"me:{TOKEN}".encode()).decode()
    assert site.get(Authorization=f"Bearer {TOKEN}")[0] == site.get(Authorization=f"Basic {basic}")[0] == 200
    status, headers, text = site.get()
    assert status == 401
    assert "Basic" in headers["WWW-Authenticate"]
    assert "Servers" not in text


def test_headers(open_site: OpenSite) -> None:
    """The page has its own policy, which allows its style sheet and script only; other answers keep theirs."""
    site = open_site()
    _, headers, text = site.get()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "style-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert headers.get_all("Content-Security-Policy") == [policy]
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert site.get("health")[1]["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text), "no external asset"
    for part in ('<html lang="en">', '<meta name="viewport"', "<title>", '<noscript><meta http-equiv="refresh"'):
        assert part in text


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """Every text colour has enough contrast on every background that it is used on, as WCAG's level AA requires."""
    block = re.findall(r":root \{(.*?)\}", (TEMPLATES / "page.css").read_text("utf-8"), flags=re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    grounds = ("ground", "box", "ok-ground", "degraded-ground", "down-ground")
    pairs = [*product(("text", "quiet"), grounds), *product(("ok", "degraded", "down"), ("box", "ground"))]
    for text, ground in [*pairs, ("ok", "ok-ground"), ("degraded", "degraded-ground"), ("down", "down-ground")]:
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= CONTRAST_AA, (text, ground)
