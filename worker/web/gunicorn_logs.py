"""gunicorn's log lines in our form: its own handlers would send everything to stderr, the log of warnings."""

from typing import Any

from gunicorn.glogging import Logger as GunicornLogger


class Logger(GunicornLogger):
    """Leaves gunicorn's messages to the root logger, which worker.runtime.logs has set up."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.access_log.propagate = False
