"""What the bare transport can do: a campaign's own messages, built beforehand, over kept connections.

    python -m benchmarks.bare DATABASE_URL CAMPAIGN_ID CHANNEL SINK_PORT CONNECTIONS MESSAGES

sends up to so many messages of the campaign with plain smtplib or http.client and prints {"messages", "seconds",
"cpu_seconds"}; the database stays as it is. A process of its own, so that its memory and its threads are not
the benchmark's.
"""

import base64
import json
import smtplib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from typing import Any

from worker.campaigns.batch import Recipient
from worker.campaigns.campaign import Campaign
from worker.content.campaign import EmailContent, Sender, WhatsAppContent
from worker.messages import Email, WhatsAppMessage
from worker.runtime.clock import utc_now
from worker.runtime.db import Database, queries
from worker.sending.accounts import settings_object

_RECIPIENTS = """
SELECT id, "recipientName" AS name, "recipientEmail" AS email, "recipientPhone" AS phone, 0 AS attempts
FROM "CampaignRecipient" WHERE "campaignId" = %(campaign_id)s ORDER BY id LIMIT %(limit)s"""

Send = Callable[[Any], None]


def main(url: str, campaign_id: str, channel: str, port: int, connections: int, limit: int) -> dict[str, float]:
    database = Database(url, "bench bare")
    [row] = database.all(queries("campaign")["campaign"], campaign_id=campaign_id, largest=100_000_000)
    recipients = [Recipient(**each) for each in database.all(_RECIPIENTS, campaign_id=campaign_id, limit=limit)]
    database.close()
    campaign = Campaign.from_row(row)
    messages = built(campaign, recipients)
    transports: dict[str, Callable[[int], Send]] = {
        "email": smtp,
        "whatsapp": partial(whatsapp, campaign),
        "gmail": partial(gmail, campaign),
    }
    sends = [transports[channel](port) for _ in range(connections)]
    waiting = deque(messages)
    threads = [threading.Thread(target=send_all, args=(send, waiting)) for send in sends]
    began, cpu_began = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    return {"messages": len(messages), "seconds": seconds, "cpu_seconds": cpu_seconds}


def built(campaign: Campaign, recipients: list[Recipient]) -> list[Email | WhatsAppMessage]:
    """The messages as the worker makes them."""
    content: EmailContent | WhatsAppContent = WhatsAppContent(campaign.texts, None)
    if campaign.channel == "email":
        sender = Sender(campaign.user.user_name or "", campaign.user.user_email or "")
        content = EmailContent(campaign.texts, sender, None, None)
    return [content.message(recipient, utc_now()) for recipient in recipients]


def smtp(port: int) -> Send:
    """One kept connection of the standard smtplib."""
    connection = smtplib.SMTP("127.0.0.1", port, "localhost")
    connection.ehlo()

    def send(message: Email) -> None:
        connection.sendmail(message.envelope_from, [message.to], message.content)

    return send


def whatsapp(campaign: Campaign, port: int) -> Send:
    account = settings_object(campaign.user.tenant_settings, "whatsapp")
    post = http(port, f"/{account['phoneId']}/messages", account["token"])
    return lambda message: post(message.payload)


def gmail(campaign: Campaign, port: int) -> Send:
    post = http(port, "/gmail/v1/users/me/messages/send", str(campaign.user.gmail_access_token))
    return lambda message: post({"raw": base64.urlsafe_b64encode(message.content).decode("ascii")})


def http(port: int, path: str, token: str) -> Callable[[object], None]:
    """One kept connection of the standard http.client."""
    connection = HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(body: object) -> None:
        connection.request("POST", path, json.dumps(body).encode(), headers)
        json.loads(connection.getresponse().read())

    return post


def send_all(send: Send, waiting: deque[Any]) -> None:
    while True:
        try:
            message = waiting.popleft()
        except IndexError:
            return
        send(message)


if __name__ == "__main__":
    _, url, campaign_id, channel, *numbers = sys.argv
    print(json.dumps(main(url, campaign_id, channel, *map(int, numbers))))
