"""Which From addresses cannot pass DMARC through a server that is not their provider's."""

import pytest

from worker.content.freemail import is_foreign_freemail

OURS = "mail.crm.example.in"


@pytest.mark.parametrize(
    ("address", "host", "foreign"),
    [
        ("asha@gmail.com", OURS, True),
        ("asha@GMAIL.com", OURS, True),
        ("asha@googlemail.com", OURS, True),
        ("asha@yahoo.co.in", OURS, True),
        ("asha@yahoo.in", OURS, True),
        ("asha@yahoo.com.br", OURS, True),
        ("asha@ymail.com", OURS, True),
        ("asha@outlook.com", OURS, True),
        ("asha@outlook.in", OURS, True),
        ("asha@hotmail.co.uk", OURS, True),
        ("asha@live.in", OURS, True),
        ("asha@rediffmail.com", OURS, True),
        ("asha@icloud.com", OURS, True),
        ("asha@proton.me", OURS, True),
        ("asha@zohomail.in", OURS, True),
        ("asha@chai.example", OURS, False),
        ("asha@notgmail.com", OURS, False),
        ("asha@gmail.com.example", OURS, False),
        ("asha@mail.gmail.com.example", OURS, False),
        ("asha@yahoo.example", OURS, False),
        ("asha@live.example", OURS, False),
        ("asha@rediff.com", OURS, False),
        ("no address", OURS, False),
        ("asha@gmail.com", "smtp.gmail.com", False),
        ("asha@gmail.com", "smtp-relay.gmail.com", False),
        ("asha@gmail.com", "smtp.gmail.com.evil.example", True),
        ("asha@gmail.com", "notgmail.com", True),
        ("asha@gmail.com", "smtp.mail.yahoo.com", True),
        ("asha@yahoo.in", "smtp.mail.yahoo.com", False),
        ("asha@outlook.com", "smtp-mail.outlook.com", False),
        ("asha@hotmail.com", "smtp.office365.com", False),
        ("asha@me.com", "smtp.mail.me.com", False),
        ("asha@gmail.com", "", True),
    ],
)
def test_free_mailboxes(address: str, host: str, foreign: bool) -> None:
    """A free provider's address is foreign to every server but that provider's own ones."""
    assert is_foreign_freemail(address, host) is foreign
