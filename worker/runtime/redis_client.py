"""Connections to Redis, for each form that REDIS_URL may have.

    redis://user:password@host:6379/0       without TLS
    rediss://user:password@host:6379/0      TLS, with a valid certificate; ?ssl_ca_certs=/path/ca.pem
    unix://user:password@/path/redis.sock?db=0
    redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0?sentinel_password=...
    rediss+sentinel://...                   TLS to the Sentinels and to the master

valkey:// and valkeys:// mean redis:// and rediss://. Timeouts are short and there is one retry: the loop
(worker/runtime/loop.py) handles outages, with pauses and logs.
"""

import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from worker.errors import SettingsError

CONNECT_TIMEOUT_SECONDS = 2.0
READ_TIMEOUT_SECONDS = 5.0
SENTINEL_TIMEOUT_SECONDS = 1.0  # of one Sentinel: if it does not answer, the next one is asked
HEALTH_CHECK_SECONDS = 30  # a connection that was idle for longer is tested with PING before it is used
REDIS_PORT = 6379
SENTINEL_PORT = 26379
FAIL_OVER_SECONDS = 1.5  # how long a new master is waited for, twice: connecting has a retry, too
FAIL_OVER_PAUSE_SECONDS = 0.2
NO_CLUSTER = (
    "it leads to a Redis Cluster, which the worker cannot use, since its scripts need all keys on one server: use a "
    "server with cluster mode disabled (cluster-enabled no), or one behind Sentinel"
)

_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_OPTIONS = {
    "redis": {"db"},
    "rediss": {"db"} | _TLS_OPTIONS,
    "unix": {"db"},
    "redis+sentinel": _SENTINEL_OPTIONS,
    "rediss+sentinel": _SENTINEL_OPTIONS | _TLS_OPTIONS,
}
_ALIASES = {"valkey": "redis", "valkeys": "rediss"}
_HOST = re.compile(r"\[(?P<six>[0-9a-fA-F:.]+)\](:(?P<six_port>\d+))?|(?P<host>[\w.-]+)(:(?P<port>\d+))?", re.ASCII)
_SERVICE = re.compile(r"[\w.-]+", re.ASCII)


class _ServerConnection(AbstractConnection):
    """What each of our connections does beyond redis-py's.

    A reply that is outstanding, after a time-out for example, would be taken for the next command's: then the
    connection is closed. And it is not used again once its server has become a replica: the address may lead to
    another server by now.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options | {"disconnect_on_error": True})
        except redis.ResponseError as error:
            # in mid-pipeline there are more replies to read, so it is closed when it goes back to its pool
            if isinstance(error, redis.ReadOnlyError) or "READONLY" in str(error):  # a script's error has the code
                self.mark_for_reconnect()  # type: ignore[no-untyped-call]
            raise


class _PlainConnection(_ServerConnection, Connection):
    pass


class _TlsConnection(_ServerConnection, SSLConnection):
    pass


class _UnixConnection(_ServerConnection, UnixDomainSocketConnection):
    pass


class _MasterConnection(_ServerConnection, SentinelManagedConnection):
    """A connection to the master that the Sentinels name."""

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        if not self.is_connected:  # a retry: redis-py would connect to the former master's address
            self.connect()  # type: ignore[no-untyped-call]
        super().send_packed_command(*args, **options)  # type: ignore[no-untyped-call]


class _MasterTlsConnection(_MasterConnection, SentinelManagedSSLConnection):
    pass


_CLASSES: dict[type, type] = {
    Connection: _PlainConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class _Sentinels(Sentinel):
    """The Sentinels. While they know of no master that works, a fail-over is under way: it is waited for a moment."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        until = time.monotonic() + FAIL_OVER_SECONDS
        while True:
            try:
                host, port = super().discover_master(service_name)  # type: ignore[no-untyped-call]
            except MasterNotFoundError:
                if time.monotonic() > until or not any(map(_answers, self.sentinels)):
                    raise
                time.sleep(FAIL_OVER_PAUSE_SECONDS)
            else:
                return host, port


def _answers(sentinel: redis.Redis) -> bool:
    try:
        sentinel.ping()
    except redis.ResponseError:
        return True
    except redis.RedisError:
        return False
    return True


class _SentinelPool(SentinelConnectionPool):
    """A pool that also closes its connections to the Sentinels; the library leaves that to the garbage collector."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for each in self.sentinel_manager.sentinels:
                each.close()


def connect(url: str, *, timeout_seconds: float = READ_TIMEOUT_SECONDS) -> redis.Redis:
    """A client that returns text; it connects when it is first used.

    A command that gets no answer within ``timeout_seconds`` raises redis.TimeoutError; connecting may take 2 seconds
    at most. When a connection is broken, the client connects again at once, one time. Raises ValueError with a text
    for the operator, which repeats nothing of the URL but its scheme: another piece of a mistyped URL may be a piece
    of the password.
    """
    parts, options = _split(url)
    common: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_SECONDS, timeout_seconds),
        # One retry is enough for a server that was restarted. A command that timed out is not sent again: the
        # server may be busy with it, and waiting twice as long does not help.
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        # no CLIENT commands: they cost round trips, and an ACL need not allow them
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    settings = common | {
        "health_check_interval": HEALTH_CHECK_SECONDS,
        "decode_responses": True,
        "encoding_errors": "replace",
        **_credentials(parts),
    }
    tls: dict[str, Any] = {}
    if parts.scheme.startswith("rediss"):
        chosen = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
        tls = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, **chosen}
    if parts.scheme.endswith("+sentinel"):
        return redis.Redis.from_pool(_sentinel_pool(parts, options, common | tls, settings | tls))
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or len(parts.path) < 2:
            raise ValueError("a unix:// URL must name a socket by its absolute path: unix:///run/redis.sock?db=0")
        client = redis.Redis(unix_socket_path=unquote(parts.path), db=_number(options.get("db")), **settings)
    else:
        host, port = _address(parts.netloc.rpartition("@")[2], REDIS_PORT)
        db = _number(options.get("db") or parts.path.strip("/"))
        client = redis.Redis(host=host, port=port, db=db, **settings, **tls)
    client.connection_pool.connection_class = _CLASSES[client.connection_pool.connection_class]
    return client


def require_no_cluster(client: redis.Redis) -> None:
    """Raises SettingsError when REDIS_URL leads to a Redis Cluster, and redis.RedisError when there is no answer."""
    if is_cluster(client):
        raise SettingsError(f"REDIS_URL: {NO_CLUSTER}")


def is_cluster(client: redis.Redis) -> bool:
    """Whether the server is one of a Redis Cluster. Raises redis.RedisError when there is no answer."""
    try:
        return bool(client.info("cluster").get("cluster_enabled"))
    except redis.ResponseError:  # this user must not ask; without it the worker learns it from a MOVED reply
        return False


def _split(url: str) -> tuple[SplitResult, dict[str, str]]:
    # The standard library's errors quote the URL and must not become the context of our error, so ours is raised
    # outside the except block.
    try:
        parts = urlsplit(url.strip())
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        parts = None
    if parts is None or parts.fragment or "@" in parts.path:
        raise ValueError(
            "the Redis URL cannot be parsed: write '/', '?', '#', '@', ':' and '%' in a user or password "
            "as %2F, %3F, %23, %40, %3A and %25"
        )
    parts = parts._replace(scheme=_ALIASES.get(parts.scheme, parts.scheme))
    if parts.scheme not in _OPTIONS:
        raise ValueError(f"a Redis URL must begin with {', '.join(f'{each}://' for each in (*_OPTIONS, *_ALIASES))}")
    allowed = _OPTIONS[parts.scheme]
    if not {name for name, _ in pairs} <= allowed:
        raise ValueError(f"a {parts.scheme}:// URL may only have the options {', '.join(sorted(allowed))}")
    return parts, dict(pairs)


def _credentials(parts: SplitResult) -> dict[str, str]:
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    if user and not colon:
        raise ValueError("the Redis URL has a user without a password; write a password alone as :password@host")
    found = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _address(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    port = int(match["port"] or match["six_port"] or default_port) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError("the Redis URL must name a host and a port between 1 and 65535: redis://host:6379/0")
    return match["host"] or match["six"], port


def _number(text: str | None) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("the database of the Redis URL must be a number: redis://host:6379/0")
    return int(text or 0)


def _sentinel_pool(
    parts: SplitResult, options: Mapping[str, str], of_sentinels: dict[str, Any], of_master: dict[str, Any]
) -> ConnectionPool:
    """``of_sentinels``, ``of_master``: the settings of connections to them."""
    service, _, db = parts.path.strip("/").partition("/")
    if not _SERVICE.fullmatch(service):
        raise ValueError(
            "the Redis URL must name the master's service: redis+sentinel://host1:26379,host2:26379/mymaster/0"
        )
    hosts = [_address(each, SENTINEL_PORT) for each in parts.netloc.rpartition("@")[2].split(",")]
    secrets = {
        "username": options.get("sentinel_username"),
        "password": options.get("sentinel_password"),
    }
    named = {key: value for key, value in secrets.items() if value}
    limits = {
        name: min(of_sentinels[name], SENTINEL_TIMEOUT_SECONDS)
        for name in ("socket_timeout", "socket_connect_timeout")
    }
    sentinels = _Sentinels(hosts, sentinel_kwargs=of_sentinels | limits | named)  # type: ignore[no-untyped-call]
    kind = _MasterTlsConnection if of_master.pop("ssl", False) else _MasterConnection
    return _SentinelPool(  # type: ignore[no-untyped-call]
        service, sentinels, connection_class=kind, db=_number(db), **of_master
    )
