"""A Redis master, its replica, and a Sentinel that lets the replica take over.

group = RedisGroup(folder)
group.start()
url = group.url
group.master.kill()  # or freeze(): the replica is the master soon after
"""

from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sandbox.ports import free_port
from sandbox.redis import Redis, program
from sandbox.servers import Child, ManagedServer, kept_password

SERVICE = "mymaster"
DOWN_AFTER_SECONDS = 1.0


class Sentinel(ManagedServer):
    """One Sentinel, which alone decides that the master is down."""

    def __init__(self, folder: Path, master: Redis) -> None:
        super().__init__()
        self.folder = folder
        self.port = free_port()
        self._master = master

    def answers(self) -> bool:
        """Whether it knows the master's replica, so that a failover can begin."""
        with redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return int(client.sentinel_masters()[SERVICE]["num-slaves"]) > 0
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        conf = self.folder / "sentinel.conf"  # Sentinel itself writes to it, too
        conf.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._master.port} 1\n"
            f"sentinel auth-pass {SERVICE} {self._master.password}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_SECONDS * 1000:.0f}\n"
            f"sentinel failover-timeout {SERVICE} 10000\n",
            "utf-8",
        )
        log = self.folder / "sentinel.log"
        self._child = Child([program(), conf, "--sentinel"], log, directory=self.folder)
        self._child.wait_until(self.answers, "Sentinel")


class RedisGroup:
    """Three servers with one password. ``master`` and ``replica`` are named by what they are at the start."""

    def __init__(self, folder: Path) -> None:
        secret = kept_password(folder / "password")
        for name in ("master", "replica"):
            (folder / name).mkdir(parents=True)
            (folder / name / "password").write_text(secret, "ascii")
        # one replica in step is enough for Sentinel; without a delay it is so within a second
        options = {"masterauth": secret, "repl-diskless-sync-delay": "0"}
        self.master = Redis(folder / "master", options=options)
        self.replica = Redis(folder / "replica", options=options | {"replicaof": f"127.0.0.1 {self.master.port}"})
        self.sentinel = Sentinel(folder / "sentinel", self.master)

    @property
    def url(self) -> str:
        return f"redis+sentinel://:{self.master.password}@127.0.0.1:{self.sentinel.port}/{SERVICE}/0"

    def start(self) -> None:
        """Returns when the replica has the master's data. Raises ServerMissing and ServerFailed."""
        for each in (self.master, self.replica, self.sentinel):
            each.start()

    def promoted(self) -> bool:
        """Whether the replica is the master now."""
        with self.replica.client() as client:
            return bool(client.info("replication")["role"] == "master")

    def kill(self) -> None:
        for each in (self.sentinel, self.replica, self.master):
            each.kill()
