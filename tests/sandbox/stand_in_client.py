"""Requests like those of the worker's providers, over persistent connections."""

import base64
import json
from typing import Any
from urllib.parse import urlencode

import urllib3

from sandbox.accounts import GMAIL_ACCESS_TOKEN, TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN, WHATSAPP_TOKEN
from sandbox.world import World

RAW = b"From: a@shop.example\r\nTo: Priya <priya@x.example>\r\nMessage-ID: <1@shop.example>\r\n\r\n?>~\xff\r\n"
TEXT = {"messaging_product": "whatsapp", "to": "+919800000001", "type": "text", "text": {"body": "Namaste"}}
CALL = {"To": "+919800000001", "From": "+918047112233", "Url": "http://app.example/twiml"}
AUTH = {"Authorization": f"Bearer {WHATSAPP_TOKEN}", "Content-Type": "application/json"}
FORM = "application/x-www-form-urlencoded"
Json = dict[str, Any]


class Http:
    """Sends requests to a World over persistent connections."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pool = urllib3.PoolManager(retries=False, timeout=20)

    def ask(self, method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Json, dict[str, str]]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self.pool.request(method, url, body=body, headers=sent)
        return response.status, json.loads(response.data), dict(response.headers)

    def gmail(self, raw: bytes = RAW, token: str = GMAIL_ACCESS_TOKEN) -> tuple[int, Json, dict[str, str]]:
        body = json.dumps({"raw": base64.urlsafe_b64encode(raw).decode()})
        url = f"{self.world.gmail_url}/gmail/v1/users/me/messages/send"
        return self.ask("POST", url, body, Authorization=f"Bearer {token}", Content_Type="application/json")

    def search(self, message_id: str, token: str = GMAIL_ACCESS_TOKEN) -> Json:
        query = urlencode({"q": f"rfc822msgid:{message_id}"})
        url = f"{self.world.gmail_url}/gmail/v1/users/me/messages?{query}"
        return self.ask("GET", url, Authorization=f"Bearer {token}")[1]

    def token(self, **form: str) -> tuple[int, Json, dict[str, str]]:
        usual = {"grant_type": "refresh_token", "client_id": "sandbox-id", "client_secret": "sandbox-secret"}
        fields = usual | {"refresh_token": "sandbox-refresh"} | form
        return self.ask("POST", self.world.token_url, urlencode(fields), Content_Type=FORM)

    def whatsapp(
        self, payload: Any = None, token: str = WHATSAPP_TOKEN, phone_id: str = "105550100100100"
    ) -> tuple[int, Json, dict[str, str]]:
        url = f"{self.world.whatsapp_url}/{phone_id}/messages"
        body = json.dumps(TEXT if payload is None else payload)
        return self.ask("POST", url, body, Authorization=f"Bearer {token}", Content_Type="application/json")

    def twilio(
        self, method: str, rest: str, fields: Json | None = None, password: str = TWILIO_AUTH_TOKEN
    ) -> tuple[int, Json, dict[str, str]]:
        login = urllib3.make_headers(basic_auth=f"{TWILIO_ACCOUNT_SID}:{password}")["authorization"]
        url = f"{self.world.twilio_url}/2010-04-01/Accounts/{TWILIO_ACCOUNT_SID}/{rest}"
        body = urlencode(fields) if fields else None
        return self.ask(method, url, body, Authorization=login, Content_Type=FORM)
