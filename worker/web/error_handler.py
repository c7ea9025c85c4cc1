"""What an application of Falcon answers when a resource fails with something that is not an answer itself."""

import logging
from typing import Any

import falcon

log = logging.getLogger(__name__)


def unexpected(request: falcon.Request, response: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    """A handler for all exceptions: raises HTTPInternalServerError, whose reason is in the log only."""
    if isinstance(error, falcon.HTTPError | falcon.HTTPStatus):
        raise error
    # the template of the path: the path itself may be an unsubscribe link, which is a secret of its recipient
    log.error("a request failed: a bug, please report it", {"path": request.uri_template}, exc_info=error)
    raise falcon.HTTPInternalServerError(title="Internal error", description="The log of `web` has the details.")
