"""A running bin/web, and what it answers."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as prometheus
from workers import WAIT_SECONDS, Worker


@dataclass
class Answer:
    status: int
    headers: Message
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Web:
    """A running bin/web."""

    worker: Worker
    port: int

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:  # noqa: S310 - http only
                return Answer(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read().decode())

    def answers(self) -> bool:
        with suppress(OSError):
            return self.get("/livez").status == 200
        return False

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every series of /metrics."""
        families = prometheus(self.get("/metrics").text)
        return {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for family in families
            for each in family.samples
        }

    def dependencies(self) -> dict[str, float]:
        name = "crm_worker_dependency_up"
        return {labels[0][1]: value for (metric, labels), value in self.samples().items() if metric == name}


OpenWeb = Callable[..., Web]
