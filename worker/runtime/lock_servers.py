"""The Redis servers of a lock: one, or several independent ones that are asked side by side (LOCK_REDIS_URLS).

One of several that does not answer costs one time-out. Then it is left out, unless its answer is needed for the
majority, until it answers a PING that nobody waits for.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import redis

from worker.errors import SettingsError
from worker.runtime.redis_client import NO_CLUSTER, is_cluster

log = logging.getLogger(__name__)

LOCK_SERVER_TIMEOUT_SECONDS = 0.5  # of one command to one of several servers
ANSWER_SECONDS = 1.0  # of a question in all: connecting may take several commands, or a name server its time
PROBE_SECONDS = 1.0  # from one PING to a server that was left out to the next

Question = Callable[[redis.Redis], bool]


class _Server:
    """One of several servers."""

    def __init__(self, client: redis.Redis, place: str) -> None:
        self.client = client
        self.place = place  # "2 of 3", in LOCK_REDIS_URLS
        self.error: redis.RedisError | None = None  # why it could not answer the latest question that it was asked
        self.left_out = False
        self.request: Future[bool] | None = None  # a question that lasts too long, or a PING
        self.probed_at = 0.0

    def answered(self, yes: bool) -> None:
        if not yes and isinstance(self.error, redis.ResponseError):
            return  # there was nothing to write, so it is not known whether it would still refuse that
        if self.error is not None:
            log.info("a lock server is available again", {"server": self.place})
        self.error, self.left_out = None, False

    def failed(self, error: redis.RedisError) -> None:
        if self.error is None:
            log.warning("a lock server is unavailable", {"server": self.place, "reason": error})
        # one that refuses a command costs no time
        self.error, self.left_out = error, not isinstance(error, redis.ResponseError)


class LockServers:
    """Asks the servers, and counts what they say. Thread-safe."""

    def __init__(self, clients: Sequence[redis.Redis]) -> None:
        self.quorum = len(clients) // 2 + 1
        self._servers = [
            _Server(client, f"{number} of {len(clients)}") for number, client in enumerate(clients, start=1)
        ]
        self._guard = threading.Lock()  # guards _threads and what is known of each server
        self._threads: ThreadPoolExecutor | None = None

    def ask(self, question: Question) -> tuple[int, list[redis.RedisError]]:
        """How many servers say yes, and the errors of those that did not answer."""
        if len(self._servers) == 1:
            try:
                return int(question(self._servers[0].client)), []
            except redis.RedisError as error:
                return 0, [error]
        with self._guard:
            asked = [each for each in self._servers if not self._is_left_out(each)]
        yes = self._ask(asked, question)
        others = [each for each in self._servers if each not in asked]
        if sum(each.error is None for each in asked) < self.quorum:
            yes += self._ask(others, question)
        return yes, [each.error for each in self._servers if each.error is not None]

    def require_no_cluster(self) -> None:
        """Raises SettingsError when one of several servers is a Redis Cluster; one that does not answer is none."""
        found: list[redis.Redis] = []

        def look(client: redis.Redis) -> bool:
            if is_cluster(client):
                found.append(client)
            return True

        if len(self._servers) > 1:
            self.ask(look)
        for each in self._servers:
            if each.client in found:
                raise SettingsError(f"LOCK_REDIS_URLS, server {each.place}: {NO_CLUSTER}")

    def too_few(self, failures: Sequence[redis.RedisError]) -> redis.RedisError | None:
        """The error to raise when the servers that answered are no majority."""
        answered = len(self._servers) - len(failures)
        if answered >= self.quorum:
            return None
        if len(self._servers) == 1 or isinstance(failures[0], redis.ResponseError):
            return failures[0]
        available = f"{answered} of {len(self._servers)} lock servers (LOCK_REDIS_URLS) are available"
        return redis.ConnectionError(f"{available}, the lock needs {self.quorum}: {failures[0]}")

    def disconnect(self) -> None:
        """Closes the connections that nobody uses just now."""
        for each in self._servers:
            each.client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Ends the threads; waits for the answers that they wait for. ``ask`` starts new ones."""
        with self._guard:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def _ask(self, servers: Iterable[_Server], question: Question) -> int:
        with self._guard:
            requests = {each: self._submit(question, each.client) for each in servers}
        wait(requests.values(), ANSWER_SECONDS)
        yes = 0
        with self._guard:
            for server, request in requests.items():
                try:
                    answer = request.result(timeout=0)
                    server.answered(answer)
                    yes += answer
                except redis.RedisError as error:
                    server.failed(error)
                except TimeoutError:
                    server.failed(redis.TimeoutError(f"no answer within {ANSWER_SECONDS:g} s"))
                    server.request = request
        return yes

    def _is_left_out(self, server: _Server) -> bool:
        """Asks for a sign of life now and then, and sees whether there was one."""
        if not server.left_out:
            return False
        if server.request and server.request.done():
            server.left_out = server.request.exception() is not None
            server.request = None
        if server.left_out and not server.request and time.monotonic() - server.probed_at >= PROBE_SECONDS:
            server.probed_at = time.monotonic()
            server.request = self._submit(lambda client: bool(client.ping()), server.client)
        return server.left_out

    def _submit(self, question: Question, client: redis.Redis) -> Future[bool]:
        """Called under the guard."""
        if self._threads is None:
            # two of a server: its renewal does not wait for another question, or for a PING
            self._threads = ThreadPoolExecutor(2 * len(self._servers), thread_name_prefix="lock servers")
        return self._threads.submit(question, client)
