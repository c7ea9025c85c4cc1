"""gunicorn's log lines in the worker's format; its own handlers would write all of them to stderr."""

from typing import Any

from gunicorn.glogging import Logger as GunicornLogger


class Logger(GunicornLogger):
    """Passes gunicorn's messages to the root logger, which worker.runtime.logs has configured."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.access_log.propagate = False
