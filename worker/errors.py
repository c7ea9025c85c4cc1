"""The kinds of errors there are, by what has to happen next.

    WorkerError
    ├── SettingsError          stop this process: bad configuration (exit status 2)
    ├── SchemaError            stop this process: bin/migrate has to run first (exit status 2)
    ├── ServerUnavailable             a server besides PostgreSQL and Redis does not answer: the loop waits for it
    ├── TickFailed             something of this tick could not be done: try again sooner than at the next interval
    ├── TransportMissing       stop this campaign: its tenant has no way to send configured
    └── SendError              what became of one message
        ├── RetryLater         not sent; try again later, whoever the recipient is
        │   └── RecipientDeferred    ... this recipient; others can be written to now
        ├── RecipientRefused   not sent; give up on this recipient
        │   └── RecipientOptedOut   ... and never write to this address again
        ├── CampaignRejected   not sent; stop the campaign (template or content refused)
        ├── AccountRejected    not sent; stop everything that uses this account (credentials, blocked)
        └── Unconfirmed        it may have been sent: the answer never came

Providers turn vendors' errors into these at their edge, nowhere else.
"""


class WorkerError(Exception):
    """An error the worker understands; its text is written for an operator."""


class SettingsError(WorkerError):
    """A variable of the environment has a value the program cannot run with."""


class SchemaError(WorkerError):
    """The worker's own tables are missing or older than the program."""


class ServerUnavailable(WorkerError):
    """A server does not answer, whose name is ``server``; the text is the reason."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(reason)
        self.server = server


class TickFailed(WorkerError):
    """A tick left something undone; it is to be tried again after ``delay_seconds``."""

    def __init__(self, reason: str, delay_seconds: float) -> None:
        super().__init__(reason)
        self.delay_seconds = delay_seconds


class TransportMissing(WorkerError):
    """Nothing is configured that could carry this campaign; the text says what to configure."""


class SendError(WorkerError):
    """A message was not accepted; the text is the reason in the provider's words."""


class RetryLater(SendError):
    """The message was not sent and may be, later.

    ``delay_seconds`` is the provider's own wish (Retry-After and the like), None when it named none.
    """

    def __init__(self, reason: str, delay_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.delay_seconds = delay_seconds


class RecipientDeferred(RetryLater):
    """As RetryLater, for a reason that says nothing about other recipients (greylisting, one person's limit)."""


class RecipientRefused(SendError):
    """This recipient cannot be reached; others can."""


class RecipientOptedOut(RecipientRefused):
    """This recipient asked never to be written to again."""


class CampaignRejected(SendError):
    """The provider refuses the campaign's template, content or sender address for every recipient."""


class AccountRejected(SendError):
    """The provider refuses the tenant's account or credentials."""


class Unconfirmed(SendError):
    """The message was handed over, or partly, and no answer came: nobody knows whether it was sent."""
