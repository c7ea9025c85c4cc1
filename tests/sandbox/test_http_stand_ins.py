"""The stand-ins of Gmail, Google's tokens, WhatsApp and Twilio: their checks, their errors, their rates."""

import json
from contextlib import closing
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3
from stand_in_client import CALL, RAW, TEXT, Http, Json

from sandbox.accounts import GMAIL_ACCESS_TOKEN, TWILIO_ACCOUNT_SID, WHATSAPP_TOKEN
from sandbox.received_store import Received, ReceivedStore
from sandbox.stand_in_state import StandInState
from sandbox.twilio import set_call
from sandbox.world import World


class TestGmail:
    def test_a_message_is_decoded_kept_and_found(self, http: Http, world: World) -> None:
        status, answer, _ = http.gmail()
        assert status == 200
        (received,) = world.deliveries("gmail")
        assert (received.address, received.content) == ("priya@x.example", RAW)
        assert (received.credential, received.account) == (GMAIL_ACCESS_TOKEN, "a@shop.example")
        found = http.search("<1@shop.example>")
        assert found["messages"] == [{"id": answer["id"], "threadId": answer["threadId"]}]
        assert http.search("<2@shop.example>") == {"resultSizeEstimate": 0}

    def test_a_search_does_not_find_what_was_cut_off_unread(self, http: Http, world: World) -> None:
        world.script("gmail", action="cut-before", times=1)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            http.gmail()
        assert http.search("<1@shop.example>") == {"resultSizeEstimate": 0}

    def test_a_bad_token_is_refused(self, http: Http, world: World) -> None:
        status, answer, _ = http.gmail(token="stolen")
        assert (status, answer["error"]["status"]) == (401, "UNAUTHENTICATED")
        world.revoke(GMAIL_ACCESS_TOKEN)
        assert http.gmail()[0] == 401
        assert world.total("gmail") == 0

    @pytest.mark.parametrize(
        ("raw", "message"),
        [(b"Subject: x\r\n\r\n", "Recipient address required"), (b"To: nobody\r\n\r\n", "Invalid To header")],
    )
    def test_messages_without_a_good_recipient(self, http: Http, raw: bytes, message: str) -> None:
        status, answer, _ = http.gmail(raw)
        assert (status, answer["error"]["message"]) == (400, message)
        assert answer["error"]["errors"] == [{"message": message, "domain": "global", "reason": "invalidArgument"}]

    def test_a_scripted_limit_has_googles_shape(self, http: Http, world: World) -> None:
        world.script("gmail", status=403, code="userRateLimitExceeded", retry_after="7", times=1)
        status, answer, headers = http.gmail()
        assert (status, headers["Retry-After"]) == (403, "7")
        assert answer["error"]["errors"][0]["reason"] == "userRateLimitExceeded"
        assert http.gmail()[0] == 200

    def test_a_rate_that_is_set_holds(self, http: Http, world: World) -> None:
        world.set_rates(gmail_rate=1)
        assert [http.gmail()[0] for _ in range(2)] == [200, 429]


class TestToken:
    def test_a_refresh_gives_a_token_that_works(self, http: Http) -> None:
        status, answer, _ = http.token()
        assert (status, answer["token_type"], answer["expires_in"]) == (200, "Bearer", 3599)
        assert http.gmail(token=answer["access_token"])[0] == 200

    @pytest.mark.parametrize(
        ("form", "status", "error"),
        [
            ({"refresh_token": "gone"}, 400, "invalid_grant"),
            ({"client_secret": "wrong"}, 401, "invalid_client"),
            ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ],
    )
    def test_errors(self, http: Http, form: dict[str, str], status: int, error: str) -> None:
        answered, answer, _ = http.token(**form)
        assert (answered, answer["error"]) == (status, error)
        assert answer["error_description"]

    def test_a_revoked_consent(self, http: Http, world: World) -> None:
        world.revoke("sandbox-refresh")
        assert http.token()[:2] == (
            400,
            {"error": "invalid_grant", "error_description": "Token has been expired or revoked."},
        )


def template(**changes: Any) -> Json:
    body = {"type": "body", "parameters": [{"type": "text", "text": "Priya"}]}
    content = {"name": "diwali", "language": {"code": "en_IN"}, "components": [body]} | changes
    return _typed("template", content)


def _typed(kind: str, content: Any) -> Json:
    return {"messaging_product": "whatsapp", "to": "919800000001", "type": kind, kind: content}


class TestWhatsApp:
    @pytest.mark.parametrize(
        "payload",
        [
            TEXT,
            TEXT | {"recipient_type": "individual", "biz_opaque_callback_data": "row-1"},
            template(),
            _typed("image", {"link": "https://shop.example/a.png", "caption": "Sale"}),
            _typed("document", {"link": "https://shop.example/a.pdf", "filename": "a.pdf"}),
            _typed("video", {"link": "https://shop.example/a.mp4"}),
            _typed("audio", {"link": "https://shop.example/a.mp3"}),
        ],
    )
    def test_good_messages_are_kept(self, http: Http, world: World, payload: Json) -> None:
        status, answer, _ = http.whatsapp(payload)
        assert status == 200
        assert answer["contacts"] == [{"input": payload["to"], "wa_id": "919800000001"}]
        (received,) = world.deliveries("whatsapp", "+91 98000 00001")
        assert answer["messages"] == [{"id": received.external_id}]
        assert received.external_id.startswith("wamid.")
        assert (received.account, received.credential) == ("105550100100100", WHATSAPP_TOKEN)
        assert json.loads(received.content) == payload

    @pytest.mark.parametrize(
        ("payload", "code"),
        [
            ([], 100),
            ({key: value for key, value in TEXT.items() if key != "messaging_product"}, 100),
            ({key: value for key, value in TEXT.items() if key != "to"}, 131008),
            (TEXT | {"to": "priya"}, 131009),
            (TEXT | {"type": "poem"}, 100),
            (TEXT | {"colour": "red"}, 100),
            (TEXT | {"recipient_type": "crowd"}, 131009),
            (TEXT | {"biz_opaque_callback_data": "x" * 513}, 100),
            (_typed("text", {"body": "x" * 4097}), 100),
            (_typed("text", {"body": ""}), 131008),
            (_typed("text", "hello"), 131008),
            (_typed("text", {"body": "x", "preview_url": "yes"}), 100),
            (template(name=""), 131008),
            (template(language={}), 131008),
            (template(components={}), 100),
            (template(components=[{"type": "tail"}]), 100),
            (template(components=[{"type": "body", "parameters": [{"type": "text", "text": ""}]}]), 131008),
            (template(components=[{"type": "body", "parameters": [{"type": "text", "text": "a\nb"}]}]), 100),
            (_typed("image", {"caption": "no picture"}), 131008),
            (_typed("image", {"link": "ftp://shop.example/a.png"}), 131009),
            (_typed("audio", {"link": "https://shop.example/a.mp3", "caption": "x"}), 100),
            (_typed("video", {"link": "https://shop.example/a.mp4", "caption": "x" * 1025}), 100),
        ],
    )
    def test_bad_payloads_are_refused_as_meta_does(self, http: Http, world: World, payload: Any, code: int) -> None:
        status, answer, _ = http.whatsapp(payload)
        error = answer["error"]
        assert (status, error["code"], error["type"]) == (400, code, "OAuthException")
        assert error["error_data"]["messaging_product"] == "whatsapp"
        assert error["error_data"]["details"]
        assert error["fbtrace_id"]
        assert world.total("whatsapp") == 0

    def test_a_bad_token_is_code_190(self, http: Http) -> None:
        status, answer, _ = http.whatsapp(token="expired")
        assert (status, answer["error"]["code"]) == (401, 190)

    def test_a_number_that_is_refused_is_refused_alone(self, http: Http, world: World) -> None:
        world.script("whatsapp", "+91 9800 000001", code=131026)
        status, answer, _ = http.whatsapp()
        assert (status, answer["error"]["code"]) == (400, 131026)
        assert http.whatsapp(TEXT | {"to": "919800000002"})[0] == 200
        assert world.counts("whatsapp") == {"919800000002": 1}
        assert [each.address for each in world.refusals("whatsapp")] == ["919800000001"]

    def test_the_rate_is_each_phone_ids_own(self, http: Http, world: World) -> None:
        world.set_rates(whatsapp_rate=2)
        statuses = [http.whatsapp()[0] for _ in range(3)]
        assert statuses == [200, 200, 429]
        status, answer, _ = http.whatsapp()
        assert (status, answer["error"]["code"]) == (429, 130429)
        assert http.whatsapp(phone_id="2")[0] == 200


def listed(http: Http, **query: Any) -> Json:
    """A page of Twilio's list of calls."""
    return http.twilio("GET", f"Calls.json?{urlencode(query)}")[1]


class TestTwilio:
    def test_a_call_is_made_listed_and_fetched(self, http: Http, world: World) -> None:
        status, call, _ = http.twilio("POST", "Calls.json", CALL)
        assert (status, call["status"], call["to"]) == (201, "queued", CALL["To"])
        assert world.counts("twilio") == {"919800000001": 1}
        assert http.twilio("GET", f"Calls/{call['sid']}.json")[1]["sid"] == call["sid"]
        assert http.twilio("GET", f"Calls/CA{'0' * 32}.json")[0] == 404

    def test_calls_are_listed_by_their_two_numbers(self, http: Http) -> None:
        sids = [http.twilio("POST", "Calls.json", CALL)[1]["sid"] for _ in range(2)]
        for numbers, found in [
            ({"To": CALL["To"]}, sids[::-1]),
            ({"To": CALL["To"], "From": CALL["From"]}, sids[::-1]),
            ({"To": CALL["To"], "From": "+918047112234"}, []),
            ({"To": "+919800000002"}, []),
        ]:
            assert [call["sid"] for call in listed(http, **numbers)["calls"]] == found

    def test_a_queued_call_has_no_start_time_and_is_not_found_by_it(self, http: Http, world: World) -> None:
        call = http.twilio("POST", "Calls.json", CALL)[1]
        assert (call["status"], call["start_time"]) == ("queued", None)
        assert [(each["sid"], each["start_time"]) for each in listed(http)["calls"]] == [(call["sid"], None)]
        assert listed(http, **{"StartTime>": "2020-01-01"})["calls"] == []
        world.set_call(call["sid"], "ringing")
        [found] = listed(http, **{"StartTime>": "2020-01-01"})["calls"]
        assert found["status"] == "ringing"
        assert parsedate_to_datetime(found["start_time"]) >= parsedate_to_datetime(call["date_created"])

    @pytest.mark.parametrize(
        ("sign", "days", "count"),
        [(">", -1, 1), (">", 0, 1), (">", 1, 0), ("<", -1, 0), ("<", 0, 1), ("<", 1, 1), ("", 0, 1), ("", 1, 0)],
    )
    def test_start_time_counts_whole_days_in_utc(
        self, http: Http, world: World, sign: str, days: int, count: int
    ) -> None:
        call = http.twilio("POST", "Calls.json", CALL)[1]
        world.set_call(call["sid"], "in-progress")
        started = http.twilio("GET", f"Calls/{call['sid']}.json")[1]["start_time"]
        day = parsedate_to_datetime(started) + timedelta(days=days)
        # a time of that day, before or after the call, counts like the day
        for text in (f"{day:%Y-%m-%d}", f"{day:%Y-%m-%d}T00:00:00Z", f"{day:%Y-%m-%d}T23:59:59Z"):
            assert len(listed(http, **{f"StartTime{sign}": text})["calls"]) == count

    def test_a_list_comes_in_pages(self, http: Http) -> None:
        sids = [http.twilio("POST", "Calls.json", CALL)[1]["sid"] for _ in range(5)][::-1]
        http.twilio("POST", "Calls.json", CALL | {"To": "+919800000002"})
        page = listed(http, To=CALL["To"], PageSize=2)
        http.twilio("POST", "Calls.json", CALL)  # a new call does not move the pages
        pages = [page]
        while page["next_page_uri"]:
            path, _, query = page["next_page_uri"].partition("?")
            assert path == f"/2010-04-01/Accounts/{TWILIO_ACCOUNT_SID}/Calls.json"
            page = http.twilio("GET", f"Calls.json?{query}")[1]
            pages.append(page)
        assert [[call["sid"] for call in each["calls"]] for each in pages] == [sids[:2], sids[2:4], sids[4:]]
        assert [(each["page"], each["start"]) for each in pages] == [(0, 0), (1, 2), (2, 4)]

    def test_a_calls_status_can_be_set(self, http: Http, world: World) -> None:
        sid = http.twilio("POST", "Calls.json", CALL)[1]["sid"]
        world.set_call(sid, "ringing")
        started = http.twilio("GET", f"Calls/{sid}.json")[1]["start_time"]
        world.set_call(sid, "completed")
        fetched = http.twilio("GET", f"Calls/{sid}.json")[1]
        assert (fetched["status"], fetched["start_time"]) == ("completed", started)
        assert fetched["end_time"]
        assert listed(http)["calls"] == [fetched]
        with pytest.raises(ValueError, match="status is 'asleep', not one of queued"):
            world.set_call(sid, "asleep")
        with pytest.raises(ValueError, match="no call has the sid 'CA0'"):
            world.set_call("CA0", "completed")

    def test_a_call_starts_once_and_not_while_it_is_queued(self, tmp_path: Path) -> None:
        with closing(ReceivedStore(tmp_path / "received")) as received:
            received.add(Received("twilio", "1", "accepted", external_id="CA1"))
            state = StandInState(received)
            states = [set_call(state, "CA1", each) or state.calls["CA1"] for each in ("queued", "ringing", "busy")]
        assert states[0].started_at is None
        assert states[1].started_at == states[1].at == states[2].started_at < states[2].at

    def test_a_forgotten_call_is_not_known(self, http: Http, world: World) -> None:
        sids = [http.twilio("POST", "Calls.json", CALL)[1]["sid"] for _ in range(2)]
        world.forget_call(sids[0])
        assert [http.twilio("GET", f"Calls/{sid}.json")[0] for sid in sids] == [404, 200]
        assert [call["sid"] for call in listed(http)["calls"]] == sids[1:]
        assert world.total("twilio") == 2

    def test_reading_calls_can_be_made_to_fail(self, http: Http, world: World) -> None:
        sid = http.twilio("POST", "Calls.json", CALL)[1]["sid"]
        world.script("twilio", CALL["To"], stage="list", status=503, times=1)
        world.script("twilio", CALL["To"], stage="fetch", code=20429, retry_after="7", times=1)
        assert http.twilio("POST", "Calls.json", CALL)[0] == 201
        assert http.twilio("GET", "Calls.json?To=%2B919800000002")[0] == 200
        query = urlencode({"To": CALL["To"]})
        assert [http.twilio("GET", f"Calls.json?{query}")[0] for _ in range(2)] == [503, 200]
        status, answer, headers = http.twilio("GET", f"Calls/{sid}.json")
        assert (status, answer["code"], headers["Retry-After"]) == (429, 20429, "7")
        assert http.twilio("GET", f"Calls/{sid}.json")[0] == 200
        world.script("twilio", action="cut-before", stage="list")
        with pytest.raises(urllib3.exceptions.ProtocolError):
            listed(http)
        with pytest.raises(ValueError, match="the channel whatsapp has no stage list"):
            world.script("whatsapp", stage="list")

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"To": ""}, 21201),
            ({"To": "9800000001"}, 21211),
            ({"From": ""}, 21213),
            ({"From": "shop"}, 21212),
            ({"Url": "nowhere"}, 21205),
        ],
    )
    def test_errors_have_twilios_shape(self, http: Http, change: dict[str, str], code: int) -> None:
        status, answer, _ = http.twilio("POST", "Calls.json", CALL | change)
        assert (status, answer["code"], answer["status"]) == (400, code, 400)
        assert answer["more_info"].endswith(str(code))
        assert answer["message"]

    def test_a_bad_password_is_20003(self, http: Http) -> None:
        status, answer, _ = http.twilio("POST", "Calls.json", CALL, password="wrong")
        assert (status, answer["code"]) == (401, 20003)
        assert http.twilio("GET", "Calls.json", password="wrong")[0] == 401

    def test_one_call_a_second_where_wanted(self, http: Http, world: World) -> None:
        world.set_rates(twilio_rate=1)
        answers = [http.twilio("POST", "Calls.json", CALL) for _ in range(2)]
        assert [status for status, _, _ in answers] == [201, 429]
        assert answers[1][1]["code"] == 20429
