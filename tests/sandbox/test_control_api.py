"""Failures on demand, counting, and the control API of the stand-ins."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
from stand_in_client import AUTH, CALL, TEXT, Http

from sandbox.accounts import WHATSAPP_TOKEN
from sandbox.world import World


class TestScript:
    def test_any_answer_can_be_given(self, http: Http, world: World) -> None:
        world.script("whatsapp", status=502, body="<html>bad gateway</html>", retry_after="3", times=1)
        response = http.pool.request("POST", f"{world.whatsapp_url}/1/messages", body=json.dumps(TEXT), headers=AUTH)
        assert (response.status, response.data) == (502, b"<html>bad gateway</html>")
        assert response.headers["Retry-After"] == "3"

    def test_a_connection_cut_after_accepting_leaves_a_delivery(self, http: Http, world: World) -> None:
        world.script("whatsapp", action="cut-after", times=1)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            http.whatsapp()
        assert [each.outcome for each in world.deliveries("whatsapp")] == ["unanswered"]
        assert http.whatsapp()[0] == 200
        assert world.duplicates("whatsapp") == {"919800000001": 2}

    def test_a_connection_cut_before_leaves_none(self, http: Http, world: World) -> None:
        world.script("twilio", action="cut-before", times=1)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            http.twilio("POST", "Calls.json", CALL)
        assert world.total("twilio") == 0

    def test_a_connection_that_is_cut_late(self, http: Http, world: World) -> None:
        world.script("whatsapp", action="cut-before", seconds=0.3)
        started = time.monotonic()
        with pytest.raises(urllib3.exceptions.ProtocolError):
            http.whatsapp()
        assert time.monotonic() - started >= 0.3
        assert world.total("whatsapp") == 0

    def test_an_answer_that_hangs(self, http: Http, world: World) -> None:
        world.script("gmail", "priya@x.example", action="hang", seconds=0.3, times=1)
        started = time.monotonic()
        assert http.gmail()[0] == 200
        assert time.monotonic() - started >= 0.3
        assert world.total("gmail") == 1

    def test_messages_that_pass_before_a_failure(self, http: Http, world: World) -> None:
        world.script("whatsapp", code=131026)
        world.script("whatsapp", code=131047, after=1, times=2)
        codes = [http.whatsapp()[1]["error"]["code"] for _ in range(4)]
        assert codes == [131026, 131047, 131047, 131026]

    def test_what_hangs_is_answered_when_the_rules_are_removed(self, http: Http, world: World) -> None:
        world.script("whatsapp", action="hang", seconds=600, times=1)
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(http.whatsapp)
            world.wait_for("whatsapp", 1)
            assert not asking.done()
            world.clear_script("whatsapp")
            assert asking.result(20)[0] == 200

    def test_the_newest_rule_is_used_first_and_rules_can_be_removed(self, http: Http, world: World) -> None:
        world.script("whatsapp", code=131026)
        world.script("whatsapp", code=131047, times=1)
        codes = [http.whatsapp()[1]["error"]["code"] for _ in range(2)]
        assert codes == [131047, 131026]
        world.clear_script("twilio")
        assert http.whatsapp()[0] == 400
        world.clear_script("whatsapp")
        assert http.whatsapp()[0] == 200


class TestControl:
    def test_it_counts_over_http(self, http: Http, world: World) -> None:
        http.whatsapp()
        http.whatsapp()
        base = f"{world.http_url}/control"
        assert http.ask("GET", f"{base}/counts?channel=whatsapp")[1] == {"919800000001": 2}
        summary = http.ask("GET", f"{base}/summary")[1]["whatsapp"]
        assert summary == {"deliveries": 2, "addresses": 1, "duplicates": 1, "unanswered": 0, "refused": 0}
        listed = http.ask("GET", f"{base}/deliveries?channel=whatsapp&limit=1")[1]["deliveries"]
        assert [each["address"] for each in listed] == ["919800000001"]
        assert http.ask("GET", f"{base}/message?channel=whatsapp&address=919800000001")[1] == TEXT
        assert http.ask("GET", f"{base}/message?channel=smtp")[0] == 404

    @pytest.mark.parametrize(
        ("action", "body"),
        [
            ("script", {"channel": "pigeon"}),
            ("script", ["whatsapp"]),
            ("settings", {"pigeon_rate": 1}),
            ("revoke", {}),
        ],
    )
    def test_a_wrong_request_is_refused(self, http: Http, world: World, action: str, body: Any) -> None:
        status, answer, _ = http.ask("POST", f"{world.http_url}/control/{action}", json.dumps(body))
        assert status == 400
        assert answer["error"]

    def test_a_reset_deletes_everything(self, http: Http, world: World) -> None:
        http.whatsapp()
        world.script("whatsapp", code=131026)
        world.revoke(WHATSAPP_TOKEN)
        world.set_rates(whatsapp_rate=0.01)
        world.reset()
        assert world.total() == 0
        assert [http.whatsapp()[0] for _ in range(2)] == [200, 200]

    def test_records_are_read_while_the_stand_ins_are_down(self, tmp_path: Path) -> None:
        world = World(tmp_path / "world")
        world.start()
        http = Http(world)
        http.whatsapp()
        http.pool.clear()
        world.kill()
        assert world.counts("whatsapp") == {"919800000001": 1}
        again = World(tmp_path / "world", http_port=world.options.http_port)
        again.start()
        http.whatsapp()
        http.pool.clear()
        again.stop()
        assert world.duplicates("whatsapp") == {"919800000001": 2}
        with pytest.raises(TimeoutError, match="2 of 3"):
            world.wait_for("whatsapp", 3, seconds=0.05)
