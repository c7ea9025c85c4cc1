"""Inline style sheets and scripts of the pages, and the hashes by which their policies allow them."""

import base64
import hashlib
from importlib import resources


def asset(name: str) -> str:
    """The text of a file in worker/web/templates."""
    return resources.files("worker.web").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def csp_hash(text: str) -> str:
    """The hash of an inline block in a Content-Security-Policy (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
