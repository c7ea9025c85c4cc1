"""The kinds of errors, by what has to happen next.

    WorkerError
    ├── SettingsError          stop this process: invalid configuration (exit status 2)
    ├── SchemaError            stop this process: bin/migrate has to run first (exit status 2)
    ├── ServerUnavailable      another server than PostgreSQL and Redis does not answer: the loop waits for it
    ├── TickFailed             a part of this tick could not be done: run the next tick earlier than usual
    ├── CommandRefused         end this command: what the operator asked for cannot be done
    ├── TransportMissing       stop this campaign: its tenant has configured nothing to send with
    └── SendError              what became of one message
        ├── RetryLater         not sent; try again later, with any recipient
        │   ├── RecipientDeferred    ... with this recipient; messages to others can be sent now
        │   └── TooLate              ... by whoever has its claim now: this process was frozen, or has no connection
        ├── RecipientRefused   not sent; give up on this recipient
        │   ├── RecipientExcluded    ... and never send this campaign to it, whoever asks
        │   └── RecipientOptedOut    ... and never send to this address again
        ├── CampaignRejected   not sent; stop the campaign (template or content refused)
        ├── AccountRejected    not sent; stop everything that uses this account (bad credentials, blocked)
        │   └── CountryRejected    ... to the country of this recipient; to others it can be used
        └── Unconfirmed        it may have been sent: no answer came

Only the modules of providers/ turn a vendor's errors into these.
"""


class WorkerError(Exception):
    """An error that the worker expects; its text is written for an operator."""


class SettingsError(WorkerError):
    """An environment variable is missing, or has a value that the program cannot use."""


class SchemaError(WorkerError):
    """The worker's own tables are missing or older than the program."""


class ServerUnavailable(WorkerError):
    """The server named ``server`` does not answer; the text is the reason."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(reason)
        self.server = server


class TickFailed(WorkerError):
    """A tick could not do everything; the next one is run after ``delay_seconds``."""

    def __init__(self, reason: str, delay_seconds: float) -> None:
        super().__init__(reason)
        self.delay_seconds = delay_seconds


class CommandRefused(WorkerError):
    """What an operator asked for cannot be done; the text says why, and what to do."""


class TransportMissing(WorkerError):
    """No account is configured that could send this message; the text says what to configure."""


class SendError(WorkerError):
    """A message was not accepted; the text is the reason, in the provider's words.

    ``code`` is the provider's own ('550 5.1.1', '131026'), '' if it gave none. ``advice``: what an operator can do
    about it, '' where the reason says so itself.
    """

    advice = ""

    def __init__(self, reason: str, *, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class RetryLater(SendError):
    """The message was not sent and can be tried again later.

    ``delay_seconds`` is the delay that the provider asks for (in Retry-After, for example), None if it names none.
    Nothing is sent through the account meanwhile, nor for ``account_seconds``: where a reply that names no delay
    speaks of all that is sent.
    """

    def __init__(
        self,
        reason: str,
        delay_seconds: float | None = None,
        *,
        code: str = "",
        account_seconds: float | None = None,
    ) -> None:
        super().__init__(reason, code=code)
        self.delay_seconds = delay_seconds
        self.account_seconds = account_seconds


class RecipientDeferred(RetryLater):
    """As RetryLater, for a reason that concerns this recipient only (greylisting, a limit for one person).

    ``max_attempts``: how often the message is tried in all, None: as often as others. ``delay_base``: after n
    attempts the delay is at least ``delay_base`` to the power of n, in seconds; None: it does not grow.
    """

    def __init__(
        self,
        reason: str,
        delay_seconds: float | None = None,
        *,
        code: str = "",
        max_attempts: int | None = None,
        delay_base: float | None = None,
    ) -> None:
        super().__init__(reason, delay_seconds, code=code)
        self.max_attempts = max_attempts
        self.delay_base = delay_base


class TooLate(RetryLater):
    """Not tried in time: the process was frozen, so another one may have the message by now, or had no connection."""


class RecipientRefused(SendError):
    """This recipient cannot be reached; this says nothing about others.

    Unless many in a row are refused with the same reply, which then is the sender's fault; but not where the reply
    names the address (``address_fault``) or says that its mailbox is full. ``suppress_seconds``: for how long nothing
    may be sent to it; inf: ever.
    """

    def __init__(
        self,
        reason: str,
        *,
        code: str = "",
        address_fault: bool = False,
        mailbox_full: bool = False,
        suppress_seconds: float = 0.0,
    ) -> None:
        super().__init__(reason, code=code)
        self.address_fault = address_fault
        self.mailbox_full = mailbox_full
        self.suppress_seconds = suppress_seconds


class RecipientExcluded(RecipientRefused):
    """The provider never delivers this message to this recipient; later campaigns may reach it."""


class RecipientOptedOut(RecipientRefused):
    """This recipient has asked for no more messages."""


class CampaignRejected(SendError):
    """The provider refuses the campaign's template, content or sender address for every recipient.

    ``advice``: what an operator can do about it, '' where the reason says so itself.
    """

    def __init__(self, reason: str, *, code: str = "", advice: str = "") -> None:
        super().__init__(reason, code=code)
        self.advice = advice


class AccountRejected(SendError):
    """The provider refuses the tenant's account or credentials."""


class CountryRejected(AccountRejected):
    """The tenant's account is not permitted to reach the country of this recipient."""


class Unconfirmed(SendError):
    """The message was handed over, at least in part, and no answer came: it is not known whether it was sent."""
