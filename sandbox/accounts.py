"""The accounts that the stand-ins accept, and the tenant settings that use them.

A stand-in accepts every token, secret and password that begins with ``sandbox-`` and was not revoked, and refuses all
others. So each tenant can have its own, and a test sees which one was used.
"""

import os
from typing import Any

from sandbox.stored_secrets import IV_BYTES, encrypt

PREFIX = "sandbox-"
ENCRYPTION_KEY = "5a" * 32
FROM_EMAIL = "hello@chaiwala.example"
WHATSAPP_TOKEN = "sandbox-whatsapp-token"
WHATSAPP_PHONE_ID = "105550100100100"
GMAIL_ACCESS_TOKEN = "sandbox-gmail-access-token"
GMAIL_REFRESH_TOKEN = "sandbox-gmail-refresh-token"
GOOGLE_CLIENT_ID = "sandbox-client.apps.googleusercontent.com"
GOOGLE_CLIENT_SECRET = "sandbox-client-secret"
TWILIO_ACCOUNT_SID = "AC" + "5a" * 16
TWILIO_AUTH_TOKEN = "sandbox-twilio-token"
TWILIO_NUMBER = "+918047112233"


def whatsapp_settings(token: str = WHATSAPP_TOKEN, phone_id: str = WHATSAPP_PHONE_ID) -> dict[str, Any]:
    """The ``whatsapp`` part of a tenant's settings."""
    return {"token": token, "phoneId": phone_id}


def mail_settings(from_name: str = "Chaiwala Traders", *, client_secret: str | None = None) -> dict[str, Any]:
    """The ``mail`` part of a tenant's settings; with ``client_secret`` (stored encrypted) Gmail is configured."""
    smtp = {"fromName": from_name, "fromEmail": FROM_EMAIL, "replyTo": FROM_EMAIL}
    settings: dict[str, Any] = {"provider": "smtp", "enabled": True, "domain": FROM_EMAIL.split("@")[1], "smtp": smtp}
    if client_secret is not None:
        sealed = encrypt(client_secret, ENCRYPTION_KEY, os.urandom(IV_BYTES))
        settings["oauth"] = {"clientId": GOOGLE_CLIENT_ID, "clientSecret": sealed}
        settings["provider"] = "gmail"
    return settings


def gmail_columns(email: str) -> dict[str, Any]:
    """The columns of a "User" who connected Gmail, for ``add_user(**gmail_columns(...))``."""
    return {
        "googleEmail": email,
        "gmailAccessToken": GMAIL_ACCESS_TOKEN,
        "gmailRefreshToken": GMAIL_REFRESH_TOKEN,
        "gmailScopes": ["https://www.googleapis.com/auth/gmail.send"],
    }
