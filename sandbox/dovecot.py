"""A real Dovecot with one user, for tests of the mailbox that delivery reports arrive in.

    server = Dovecot(folder)
    server.start()
    server.deliver(message)                 # into INBOX, as a mail server would
    server.folders()                        # {"INBOX": 1, "Processed": 0}

A missing Dovecot is installed from Debian's packages when this runs as root. No service is started.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sandbox.apt_lock import apt_lock
from sandbox.ports import free_port
from sandbox.servers import Child, ManagedServer, ServerMissing

INSTALL_SECONDS = 300.0
PROGRAM, ADMIN = "/usr/sbin/dovecot", "/usr/bin/doveadm"
USER = "bounces"


class Dovecot(ManagedServer):
    """``namespace``: options of the user's namespace, such as prefix="INBOX." and separator=".".

    ``certificate``: a PEM file with certificate and key, for TLS on ``tls_port`` and STARTTLS on ``port``.
    """

    def __init__(self, folder: Path, *, certificate: Path | None = None, without: str = "", **namespace: str) -> None:
        super().__init__()
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.password = secrets.token_hex(8)
        self._certificate = certificate
        self._without = without
        self._namespace = namespace

    @property
    def url(self) -> str:
        """BOUNCE_MAILBOX_URL, without TLS."""
        return f"imap://{USER}:{self.password}@127.0.0.1:{self.port}/INBOX"

    @property
    def tls_url(self) -> str:
        return f"imaps://{USER}:{self.password}@localhost:{self.tls_port}/INBOX"

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                return connection.recv(4) == b"* OK"
        except OSError:
            return False

    def start(self) -> None:
        program = dovecot()
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "dovecot.conf"
        configuration.write_text(self._configuration(), "utf-8")
        (self.folder / "users").write_text(f"{USER}:{{PLAIN}}{self.password}\n", "utf-8")
        for path in (self.folder, self.folder / "mail"):
            path.mkdir(exist_ok=True)
            os.chown(path, *_mail_user())
        self._child = Child([program, "-F", "-c", configuration], self.folder / "out.log")
        self._child.wait_until(self.answers, "dovecot")

    def deliver(self, message: bytes, folder: str = "INBOX") -> None:
        self._admin("save", "-u", USER, "-m", folder, content=message)

    def folders(self) -> dict[str, int]:
        """How many messages each folder has."""
        lines = self._admin("mailbox", "status", "-u", USER, "messages", "*", "INBOX*").splitlines()
        return {name: int(count) for name, _, count in (line.rpartition(" messages=") for line in lines)}

    def messages(self, folder: str) -> list[str]:
        """The whole messages of a folder."""
        found = self._admin("fetch", "-u", USER, "text", "mailbox", folder, "all")
        return [each for each in found.split("text:\n") if each.strip()]

    def flags(self, folder: str) -> list[str]:
        found = self._admin("fetch", "-u", USER, "flags", "mailbox", folder, "all")
        return [line.removeprefix("flags:").strip() for line in found.splitlines() if line.startswith("flags:")]

    def close_folder(self, folder: str) -> None:
        """From now on nobody may add messages to a folder that exists."""
        self._allow(folder, 0o500)

    def open_folder(self, folder: str) -> None:
        self._allow(folder, 0o700)

    def _allow(self, folder: str, mode: int) -> None:
        path = self.folder / "mail" / f".{folder}"
        for each in (path / "new", path / "cur", path / "tmp", path):
            each.chmod(mode)

    def _admin(self, *arguments: str, content: bytes | None = None) -> str:
        done = subprocess.run(
            [ADMIN, "-c", self.folder / "dovecot.conf", *arguments], input=content, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"doveadm {arguments}: {done.stderr.decode('utf-8', 'replace')}")
        return done.stdout.decode("utf-8", "replace")

    def _configuration(self) -> str:
        uid, gid = _mail_user()
        tls_port = self.tls_port if self._certificate else 0
        namespace = {"inbox": "yes", "separator": "/", "prefix": ""} | self._namespace
        options: Mapping[str, object] = {
            "base_dir": self.folder / "run",
            "state_dir": self.folder / "run",
            "log_path": self.folder / "dovecot.log",
            "protocols": "imap",
            "listen": "127.0.0.1",
            "ssl": "yes" if self._certificate else "no",
            "disable_plaintext_auth": "no",
            "mail_location": f"maildir:{self.folder / 'mail'}",
            "first_valid_uid": uid,
            "mail_uid": uid,
            "mail_gid": gid,
            "auth_mechanisms": "plain login",
        }
        lines = [f"{name} = {value}" for name, value in options.items()]
        if self._certificate:
            lines += [f"ssl_cert = <{self._certificate}", f"ssl_key = <{self._certificate}"]
        if self._without:  # a capability
            lines += ["protocol imap {", f"  imap_capability = {_capabilities_without(self._without)}", "}"]
        return "\n".join(
            [
                *lines,
                "passdb {", "  driver = passwd-file", f"  args = {self.folder / 'users'}", "}",
                "userdb {", "  driver = static", f"  args = uid={uid} gid={gid} home={self.folder / 'home'}", "}",
                "namespace inbox {", *(f"  {name} = {value}" for name, value in namespace.items()), "}",
                "service imap-login {",
                f"  inet_listener imap {{\n    port = {self.port}\n  }}",
                f"  inet_listener imaps {{\n    port = {tls_port}\n    ssl = yes\n  }}",
                "}",
                "",
            ]
        )  # fmt: skip


def dovecot() -> str:
    """The program's path. Raises ServerMissing."""
    if os.geteuid() != 0:
        raise ServerMissing("Dovecot runs as root only, which this is not")
    if not Path(PROGRAM).exists() and shutil.which("apt-get"):
        with apt_lock():
            if not Path(PROGRAM).exists():  # another process may have done it
                _install()
    if not Path(PROGRAM).exists():
        raise ServerMissing("needs Dovecot: apt-get install dovecot-imapd (done automatically only on Debian)")
    return PROGRAM


def _install() -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # no service is started
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "dovecot-imapd"]):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["apt-get", "--quiet", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=INSTALL_SECONDS,
                check=False,
            )


def _mail_user() -> tuple[int, int]:
    found = pwd.getpwnam("mail")
    return found.pw_uid, found.pw_gid


def _capabilities_without(name: str) -> str:
    every = "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ UIDPLUS NAMESPACE MOVE"
    return " ".join(each for each in every.split() if each != name)
