"""The public address of bin/web: the unsubscribe page, what mail programs send to it, and nothing else."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import urlencode

import psycopg2
import pytest
from web_process import OpenWeb, Web
from workers import Start, wait_for

from sandbox.accounts import ENCRYPTION_KEY
from sandbox.crm import Crm, apply_schema
from sandbox.ports import free_port
from sandbox.postgres import Postgres
from worker.content.unsubscribe_token import UnsubscribeTokens
from worker.runtime.migrations import migrate
from worker.web.callers import BURST
from worker.web.http_connection import REQUEST_SECONDS
from worker.web.public_site import BODY_BYTES
from worker.web.unsubscriptions import WAIT_SECONDS

ADDRESS = "asha@example.com"
ONE_CLICK = urlencode({"List-Unsubscribe": "One-Click"})
FORM = "application/x-www-form-urlencoded"
MULTIPART = '--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n'
TOKENS = UnsubscribeTokens([ENCRYPTION_KEY])


@dataclass
class PublicAnswer:
    status: int
    headers: http.client.HTTPMessage
    text: str


@dataclass
class PublicSite:
    """The public address of a running bin/web."""

    web: Web
    port: int

    def ask(self, method: str, path: str, body: str | bytes | None = None, **headers: str) -> PublicAnswer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return PublicAnswer(answer.status, answer.headers, answer.read().decode())

    def post(self, path: str, body: str, content_type: str = FORM, **headers: str) -> PublicAnswer:
        return self.ask("POST", path, body, Content_Type=content_type, **headers)

    def raw(self, sent: bytes) -> bytes:
        """All that comes back until the server closes."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=30)) as client:
            with suppress(ConnectionResetError, BrokenPipeError):
                client.sendall(sent)
            answer = b""
            with suppress(ConnectionResetError):
                while piece := client.recv(65_536):
                    answer += piece
            return answer


OpenPublic = Callable[..., PublicSite]


@pytest.fixture
def open_public(open_web: OpenWeb) -> OpenPublic:
    def make(**settings: str) -> PublicSite:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        return PublicSite(open_web(**{"PUBLIC_URL": url, "PUBLIC_PORT": str(port)} | settings), port)

    return make


def link(tenant_id: str, address: str = ADDRESS, channel: str = "email", campaign_id: str = "c-1") -> str:
    return f"/u/{TOKENS.maker(tenant_id, channel, campaign_id)(address)}"


def listed(crm: Crm) -> list[tuple[str, ...]]:
    """Who is on the suppression list."""
    return crm.execute(
        """SELECT tenant_id, channel, address, source, campaign_id FROM worker.suppression ORDER BY 1, 2, 3, 4"""
    )


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def test_mail_programs_and_people(open_public: OpenPublic, crm: Crm) -> None:
    """Looking changes nothing, a POST unsubscribes at once and each time, and the button can be undone."""
    site, tenant = open_public(), crm.tenant_id
    for method in ("GET", "HEAD"):
        answer = site.ask(method, link(tenant))
        assert (answer.status, listed(crm)) == (200, [])
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    page = site.ask("GET", link(tenant))
    assert "Chaiwala Traders" in page.text
    assert page.text.count("<button") == 1
    row = (tenant, "email", ADDRESS, "unsubscribe", "c-1")
    for content_type, body in ((FORM, ONE_CLICK), ("multipart/form-data; boundary=b", MULTIPART)):
        crm.execute("DELETE FROM worker.suppression")
        for _ in range(2):
            answer = site.post(link(tenant), body, content_type)
            assert (answer.status, listed(crm)) == (200, [row])
            assert answer.headers["Set-Cookie"] is answer.headers["Location"] is None
    undone = site.post(link(tenant), "action=undo")
    assert (undone.status, listed(crm)) == (200, [])
    assert "subscribed again" in undone.text
    done = site.post(link(tenant), "action=unsubscribe")
    assert (done.status, listed(crm)) == (200, [row])
    assert 'value="undo"' in done.text
    assert site.web.worker.said("somebody unsubscribed") == 3
    assert ADDRESS not in site.web.worker.log


def test_other_reasons_and_other_tenants_stay(open_public: OpenPublic, crm: Crm) -> None:
    """Undo takes back the unsubscription only, of that tenant and channel only."""
    site, other = open_public(), crm.add_tenant("Other Traders")
    crm.execute("SELECT worker.suppress(%s, 'email', %s, 'gone', 'bounce')", (crm.tenant_id, ADDRESS))
    crm.execute("SELECT worker.suppress(%s, 'email', %s, '', 'unsubscribe')", (other, ADDRESS))
    phone = link(crm.tenant_id, "+919876543210", "whatsapp")
    assert site.post(phone, "action=unsubscribe").status == 200
    assert site.post(link(crm.tenant_id), ONE_CLICK).status == 200
    assert len(listed(crm)) == 4
    assert site.post(link(crm.tenant_id), "action=undo").status == 200
    assert {(tenant, channel, source) for tenant, channel, _, source, _ in listed(crm)} == {
        (crm.tenant_id, "email", "bounce"),
        (crm.tenant_id, "whatsapp", "unsubscribe"),
        (other, "email", "unsubscribe"),
    }


def test_only_the_unsubscribe_page_is_public(open_public: OpenPublic, crm: Crm) -> None:
    """Everything else is 404 there, the status page is not there, and links do not work at its address."""
    site = open_public()
    for path in (
        "/",
        "/livez",
        "/readyz",
        "/health",
        "/metrics",
        "/u",
        "/u/",
        "/u/x/y",
        "//u/x",
        "/u/../metrics",
    ):
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            answer = site.ask(method, path, "a=b" if method == "POST" else None)
            assert answer.status == 404, (method, path)
            assert "crm_worker" not in answer.text
    assert site.web.get(link(crm.tenant_id)).status == 404
    assert site.web.get("/livez").status == 200
    whole = site.raw(b"GET http://127.0.0.1/metrics HTTP/1.1\r\nHost: 127.0.0.1:3002\r\nConnection: close\r\n\r\n")
    assert status(whole) == 404


def test_it_is_off_without_an_address(open_web: OpenWeb) -> None:
    """Without PUBLIC_URL nothing listens at PUBLIC_PORT."""
    port = free_port()
    open_web(PUBLIC_PORT=str(port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_headers(open_public: OpenPublic, crm: Crm) -> None:
    """No page may be kept, framed, found by a search engine, or pass its address on."""
    site = open_public()
    pages = [
        site.ask("GET", link(crm.tenant_id)),
        site.post(link(crm.tenant_id), "action=unsubscribe"),
        site.ask("GET", "/nothing"),
        site.post(link(crm.tenant_id), "x=y"),
    ]
    assert [each.status for each in pages] == [200, 200, 404, 400]
    for page in pages:
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert page.headers["X-Robots-Tag"] == "noindex"
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        (policy,) = page.headers.get_all("Content-Security-Policy") or []
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "<script" not in page.text
        assert 'name="viewport"' in page.text


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("hi", "hi"),
        ("hi-IN,hi;q=0.9,en;q=0.8", "hi"),
        ("en-IN,en;q=0.9,hi;q=0.8", "en"),
        ("ta, hi;q=0.5", "hi"),
        ("hi;q=0, en", "en"),
        ("de", "en"),
        ("hi;q=x," * 2000, "en"),
        ("\u0939".encode().decode("latin-1"), "en"),
    ],
    ids=lambda value: value[:20],
)
def test_languages(site_of_all: PublicSite, crm: Crm, accepted: str, language: str) -> None:
    page = site_of_all.ask("GET", link(crm.tenant_id), Accept_Language=accepted)
    assert f'<html lang="{language}">' in page.text
    assert ("सदस्यता" in page.text) == (language == "hi")


@pytest.fixture
def site_of_all(open_public: OpenPublic) -> PublicSite:
    return open_public()


def test_whose_messages_they_are(open_public: OpenPublic, crm: Crm) -> None:
    """In the name that the tenant signs with; in nobody's when it is deleted, and the link works all the same."""
    site = open_public()
    nasty = "<script>alert(1)</script> {sender} & {0}\r\n\u202e" + "x" * 500
    for settings, shown in (
        ({"openai": {"companyName": " Chai & Co "}}, "Chai &amp; Co sends"),
        ({"openai": {"companyName": 7}}, "7 sends"),
        ({"openai": [1]}, "Chaiwala"),
        ({"openai": {"companyName": nasty}}, "&lt;script&gt;alert(1)&lt;/script&gt; {sender} &amp; {0} "),
    ):
        tenant = crm.add_tenant(settings=settings)
        page = site.ask("GET", link(tenant))
        assert page.status == 200
        assert shown in page.text
        assert "\u202e" not in page.text
        assert "<script" not in page.text
    page = site.ask("GET", link("a tenant that is gone"))
    assert (page.status, "The sender sends no more" in page.text) == (200, True)
    assert site.post(link("a tenant that is gone"), ONE_CLICK).status == 200
    assert ("a tenant that is gone", "email", ADDRESS, "unsubscribe", "c-1") in listed(crm)


def test_what_is_not_a_link(open_public: OpenPublic, crm: Crm) -> None:
    """A token that somebody changed, of another key, or of nothing: 404, whatever is done with it."""
    site, good = open_public(), link(crm.tenant_id)
    foreign = UnsubscribeTokens(["ab" * 32]).maker(crm.tenant_id, "email", "c")(ADDRESS)
    changed = [good[:-1] + ("A" if good[-1] != "A" else "B"), good[:-4], good + "A", good.swapcase(), f"/u/{foreign}"]
    for path in [*changed, "/u/%00", "/u/" + "A" * 5000, "/u/%E0%A4%B9", "/u/..%2f..%2fmetrics"]:
        for method, body in (("GET", None), ("POST", ONE_CLICK)):
            answer = site.ask(method, path, body, Content_Type=FORM)
            assert answer.status in (404, 414), path
    assert listed(crm) == []
    assert site.ask("GET", f"{good}/").status == 200, "editors add a slash"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods(site_of_all: PublicSite, crm: Crm, method: str) -> None:
    answer = site_of_all.ask(method, link(crm.tenant_id), ONE_CLICK)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS, POST")
    assert listed(crm) == []


def test_bodies_that_unsubscribe_nobody(open_public: OpenPublic, crm: Crm) -> None:
    """Only the two forms do, and a body has a limit; each gets its answer and harms nobody else."""
    site, path = open_public(), link(crm.tenant_id)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n".encode()
    large = BODY_BYTES + 1
    for sent, expected in (
        (b"Content-Length: 0\r\n\r\n", 400),
        (b"\r\n", 400),
        (b"Content-Length: 3\r\n\r\nx=y", 400),
        (b"Content-Length: 8\r\n\r\n\xff\xfe=\x00&%zz", 400),
        (b"Content-Length: %d\r\n\r\n" % BODY_BYTES + b"a&" * (BODY_BYTES // 2), 400),
        (b"Content-Length: %d\r\n\r\n" % large + b"x" * large, 413),
        (b"Content-Length: 99999999999999999999\r\n\r\n", 413),
        (b"Content-Length: -1\r\n\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nx=yz", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nx=y\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nx=yz\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", 413),
        (b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 20_000 + b"\r\n", 413),
    ):
        assert status(site.raw(head + sent)) == expected, sent[:60]
    broken = ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=none", "a/b; c")
    assert {site.post(path, MULTIPART, each).status for each in broken} == {400}
    assert listed(crm) == []
    assert "Traceback" not in site.web.worker.log


@pytest.mark.parametrize(
    "sent",
    [
        b"Content-Length: 26\r\n\r\nList-Unsubscribe=One-Click",
        b"Transfer-Encoding: chunked\r\n\r\n10\r\nList-Unsubscribe\r\nA;x=y\r\n=One-Click\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1A\r\nList-Unsubscribe=One-Click\r\n0\r\nX: y\r\n\r\n",
        b"Expect: 100-continue\r\nContent-Length: 26\r\n\r\nList-Unsubscribe=One-Click",
    ],
    ids=["length", "chunks", "trailer", "continue"],
)
def test_how_a_body_arrives(site_of_all: PublicSite, crm: Crm, sent: bytes) -> None:
    """In chunks, byte by byte, whole: it is the same, and what follows it is not a request."""
    head = f"POST {link(crm.tenant_id)} HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n".encode()
    answer = site_of_all.raw(head + sent + b"GET /u/x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status(answer), answer.count(b"HTTP/1.1 ")) == (200, 1)
    assert len(listed(crm)) == 1
    crm.execute("DELETE FROM worker.suppression")
    with closing(socket.create_connection(("127.0.0.1", site_of_all.port), timeout=30)) as client:
        for byte in head + sent:
            client.sendall(bytes([byte]))
        received = b""
        while piece := client.recv(65_536):
            received += piece
    assert received.endswith(b"Unsubscribed.\n")
    assert len(listed(crm)) == 1


def test_a_client_that_waits_before_its_body(site_of_all: PublicSite, crm: Crm) -> None:
    """It is told to go on (RFC 9110, section 10.1.1)."""
    head = f"POST {link(crm.tenant_id)} HTTP/1.1\r\nHost: x\r\nContent-Length: 26\r\nExpect: 100-continue\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", site_of_all.port), timeout=30)) as client:
        client.sendall(head.encode())
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(ONE_CLICK.encode())
        assert status(client.recv(65_536)) == 200
    assert len(listed(crm)) == 1


def test_clients_that_stall(site_of_all: PublicSite, crm: Crm) -> None:
    """Half a request has an end; others, and the status page, do not wait for it."""
    head = f"POST {link(crm.tenant_id)} HTTP/1.1\r\nHost: x\r\n".encode()
    halves = [
        b"PO",
        head,
        head + b"Content-Length: 26\r\n\r\nList",
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ]
    answers: list[int] = []

    def stall(sent: bytes) -> None:
        answers.append(status(site_of_all.raw(sent)))

    threads = [threading.Thread(target=stall, args=(half,)) for half in halves * 10]
    for thread in threads:
        thread.start()
    assert site_of_all.web.get("/livez").status == 200
    assert site_of_all.ask("GET", link(crm.tenant_id)).status == 200
    for thread in threads:
        thread.join(REQUEST_SECONDS * 4)
    assert answers == [408] * len(threads)
    assert listed(crm) == []


def test_callers_that_ask_too_often(open_public: OpenPublic, crm: Crm) -> None:
    """They get 429, others do not; a proxy is believed about its callers, nobody else is."""
    site, path = open_public(), link(crm.tenant_id)

    def asked(times: int, **headers: str) -> list[int]:
        with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)) as connection:
            codes = []
            for _ in range(times):
                connection.request("GET", "/u/x", headers=headers)
                answer = connection.getresponse()
                answer.read()
                codes.append(answer.status)
            return codes

    def refused(**headers: str) -> bool:
        return any(429 in asked(int(BURST), **headers) for _ in range(20))

    flooder = {"X-Forwarded-For": "203.0.113.7"}
    assert refused(**flooder)
    assert asked(1, **{"X-Forwarded-For": "203.0.113.8"}) == [404]
    assert refused(**{"X-Forwarded-For": "198.51.100.1, 203.0.113.7, 127.0.0.1"}), (
        "what callers write is not believed"
    )
    assert site.ask("GET", path, X_Forwarded_For="203.0.113.9").status == 200
    limited = next(each for each in iter(lambda: site.ask("GET", path, X_Forwarded_For="203.0.113.7"), None)
                   if each.status == 429)  # fmt: skip
    assert int(limited.headers["Retry-After"]) > 0
    assert site.web.worker.said("asks too often") == 1
    assert site.web.get("/livez").status == 200


def test_while_postgresql_is_unavailable(open_public: OpenPublic, new_postgres: Callable[[], Postgres]) -> None:
    """503 with Retry-After, for people in words; it works again by itself, and says both once."""
    server = new_postgres()
    url = server.database("crm")
    with closing(psycopg2.connect(url)) as connection:
        apply_schema(connection)
        migrate(connection)
    site, path = open_public(DATABASE_URL=url), link("t")
    assert site.post(path, ONE_CLICK).status == 200
    server.stop()
    for method, body in (("GET", None), ("POST", ONE_CLICK), ("POST", "action=undo"), ("GET", None)):
        answer = site.ask(method, path, body, Content_Type=FORM, Accept_Language="hi")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
        assert "कोशिश करें" in answer.text
    assert site.ask("GET", "/u/nothing").status == 404
    server.start()
    other = link("t", "ravi@example.com")
    wait_for(lambda: site.post(other, ONE_CLICK).status == 200, "it works again")
    with closing(psycopg2.connect(url)) as connection:
        assert [row[2] for row in listed(Crm(connection))] == [ADDRESS, "ravi@example.com"]
    assert site.web.worker.said("unsubscribe links do not work") == 1
    assert site.web.worker.said("unsubscribe links work again") == 1
    assert "Traceback" not in site.web.worker.log
    server.kill()
    server.start()
    assert site.post(path, ONE_CLICK).status == 200, "a lost connection alone is no outage"


def test_a_database_that_cannot_save(open_public: OpenPublic, crm_only_url: str) -> None:
    """Without the worker's tables a POST is not lost silently: 503, and the log says what to do."""
    site = open_public(DATABASE_URL=crm_only_url)
    assert site.ask("GET", link("t")).status == 200
    for _ in range(2):
        assert site.post(link("t"), ONE_CLICK).status == 503
    assert site.web.worker.said("unsubscribe links do not work") == 1
    assert site.web.worker.said("run bin/migrate") > 0


def test_a_database_that_hangs(open_public: OpenPublic) -> None:
    """The first callers wait for it a few seconds, all others get 503 at once; the status page does not wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        site = open_public(DATABASE_URL=f"postgresql://crm@127.0.0.1:{port}/crm")
        assert site.post(link("t"), ONE_CLICK).status == 503
        began = time.monotonic()
        assert {site.post(link("t"), ONE_CLICK).status for _ in range(30)} == {503}
        assert time.monotonic() - began < 30 * WAIT_SECONDS / 2, "it does not wait each time"
        assert site.web.get("/livez").status == 200


def test_a_key_for_links_is_needed(start: Start) -> None:
    """bin/web and bin/campaign say so and end with status 2."""
    for program in ("web", "campaign"):
        settings = {"PUBLIC_URL": "https://mail.crm.example.in", "ENCRYPTION_KEY": ""}
        worker = start(program=program, **settings)
        assert worker.wait() == 2
        assert worker.said("PUBLIC_URL is set, and neither UNSUBSCRIBE_KEY nor ENCRYPTION_KEY") == 1


def test_the_log_is_json(open_public: OpenPublic, crm: Crm) -> None:
    """Who unsubscribed is not in it, but from what."""
    site = open_public(LOG_FORMAT="json")
    assert site.post(link(crm.tenant_id), ONE_CLICK).status == 200
    wait_for(lambda: site.web.worker.said("somebody unsubscribed"), "it is logged")
    (line,) = [json.loads(each) for each in site.web.worker.log.splitlines() if "somebody unsubscribed" in each]
    assert (line["tenant"], line["channel"], line["campaign"]) == (crm.tenant_id, "email", "c-1")
