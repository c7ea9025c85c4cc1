"""The development Qdrant, for machines without Qdrant's program: its REST API over its own engine as a library.

    python -m sandbox.qdrant.server --config-path conf/qdrant.yaml

It reads Qdrant's configuration and keeps its data in the same folders, but in files of another format.
One process, one shard for each collection, no gRPC, no TLS, no cluster.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from types import FrameType

import waitress
from waitress.server import BaseWSGIServer

from sandbox.qdrant.app import app_of
from sandbox.qdrant.errors import Refusal
from sandbox.qdrant.settings import BadSettings, Settings, read
from sandbox.qdrant.storage import Storage, StorageFailed
from worker.runtime import logs

log = logging.getLogger("qdrant")

_THREADS = 32
_CONNECTIONS = 1000
_LARGEST_UPLOAD_BYTES = 64 * 1024**3
_FLUSH_SECONDS = 5.0
_ENDING = (signal.SIGTERM, signal.SIGINT)

DESCRIPTION = """\
Serves Qdrant's REST API over the library qdrant-edge-py until SIGTERM. For development only: the real Qdrant is
faster, and its files have another format. Neither of the two can restore the other's snapshots."""

EPILOG = """\
The configuration is Qdrant's own: service.host, service.http_port, service.api_key, service.max_request_size_mb,
storage.storage_path and storage.snapshots_path, overridden by QDRANT__SERVICE__HOST, QDRANT__SERVICE__HTTP_PORT,
QDRANT__SERVICE__API_KEY and so on. Exit status: 0 stopped, 1 cannot run, 2 bad configuration."""


class CannotListen(Exception):
    """The address is in use, or does not belong to this machine."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.qdrant.server",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-path", type=Path, required=True, metavar="FILE", help="Qdrant's configuration, YAML"
    )
    options = parser.parse_args(arguments)
    logs.configure("INFO", "text")
    logging.getLogger("waitress").setLevel(logging.CRITICAL)  # it warns about every call that waits for a thread
    try:
        settings = read(options.config_path, os.environ)
    except BadSettings as error:
        print(f"qdrant: {error}", file=sys.stderr)
        return 2
    try:
        _run(settings)
    except (StorageFailed, CannotListen) as error:
        print(f"qdrant: {error}", file=sys.stderr)
        return 1
    return 0


def _run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then writes everything to disk."""
    storage = Storage(settings.storage, settings.snapshots)
    try:
        server = _listen(storage, settings)
        for number in _ENDING:
            signal.signal(number, _stop)
        stopping = Event()
        Thread(target=_flush_regularly, args=(storage, stopping), daemon=True).start()
        log.warning("this Qdrant is for development only: its engine is the library qdrant-edge-py")
        address = f"{settings.host}:{settings.http_port}"
        log.info("started", {"listen": address, "storage": settings.storage, "collections": len(storage.names())})
        server.run()
        stopping.set()
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt what follows
        storage.close()
    log.info("stopped")


def _listen(storage: Storage, settings: Settings) -> BaseWSGIServer:
    try:
        return waitress.create_server(
            app_of(storage, settings),
            host=settings.host,
            port=settings.http_port,
            threads=_THREADS,
            ident="qdrant",
            max_request_body_size=_LARGEST_UPLOAD_BYTES,
            connection_limit=_CONNECTIONS,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotListen(f"cannot listen at {settings.host}:{settings.http_port}: {reason}") from error


def _flush_regularly(storage: Storage, stopping: Event) -> None:
    while not stopping.wait(_FLUSH_SECONDS):
        try:
            storage.flush()
        except Refusal as error:
            log.error("flush failed", {"error": error})


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit


if __name__ == "__main__":
    sys.exit(main())
