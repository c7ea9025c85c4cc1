"""Finds what would keep programs from working before any of them is started. It connects to no server."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from configparser import RawConfigParser
from pathlib import Path

from worker.errors import SettingsError
from worker.providers.imap_url import parse_imap_url
from worker.providers.smtp import SmtpProvider
from worker.registry import SUPERVISED
from worker.runtime import program
from worker.runtime.db import Database
from worker.runtime.redis_client import connect
from worker.runtime.settings import Settings
from worker.vectors import server_program

_SECTIONS = ("program:", "eventlistener:")
# what works where IS_WORKER=false
_NOT_WORKER_ONLY = frozenset(each.name for each in SUPERVISED.values() if not each.worker_only)


def problems(conf: Path) -> list[str]:
    """All problems with the settings and the folders of supervisord's programs, one line each."""
    parser = RawConfigParser(inline_comment_prefixes=(";",))
    if not parser.read(conf):
        return [f"{conf} cannot be read"]
    programs = [section.partition(":")[2] for section in parser.sections() if section.startswith(_SECTIONS)]
    found = program.settings_problems(["entrypoint"])
    if not found and not program.is_worker():
        programs = [each for each in programs if each in _NOT_WORKER_ONLY]
    found = program.settings_problems(["entrypoint", *programs])
    unusable = [] if found else _unusable(programs)
    return [*found, *_unwritable(_folders(parser)), *unusable]


def _folders(conf: RawConfigParser) -> set[Path]:
    """The folders that supervisord writes to: of its socket, its pid file, its logs and the programs' logs."""
    server = conf["supervisord"]
    files = [conf["unix_http_server"]["file"], server["pidfile"], server["logfile"]]
    return {Path(server["childlogdir"]), *(Path(each).parent for each in files)}


def _unwritable(folders: Iterable[Path]) -> Iterator[str]:
    """Creates folders that are missing; names those that cannot be written to."""
    user = f"{os.getuid()}:{os.getgid()}"
    for folder in sorted(folders):
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield (
                f"{folder} cannot be written by user {user} ({error.strerror}): what is mounted there has to belong "
                f"to that user (chown -R {user}); a named volume does without further steps"
            )


def _unusable(programs: Sequence[str]) -> Iterator[str]:
    """Problems that each program would find at its start, in settings whose form is right."""
    settings = program.settings_from_environment("entrypoint")
    checks: list[Callable[[], object]] = [
        lambda: Database(settings.database_url, "crm-worker entrypoint"),
        lambda: _require_redis(settings),
    ]
    if "campaign" in programs:
        campaign = program.settings_from_environment("campaign")
        yield from _unwritable([campaign.state_dir])
        checks += [lambda: _require_smtp(campaign), lambda: campaign.return_paths]
    if "bounces" in programs and (url := program.settings_from_environment("bounces").bounce_mailbox_url):
        checks.append(lambda: _require_mailbox(url))
    if "knowledge" in programs and (copies := program.settings_from_environment("knowledge").knowledge_snapshot_dir):
        yield from _unwritable([copies])
    if "qdrant" in programs:
        checks.extend(_qdrant_checks(program.settings_from_environment("qdrant")))
    for check in checks:
        try:
            check()
        except SettingsError as error:
            yield str(error)


def _require_redis(settings: Settings) -> None:
    for name, urls in (("REDIS_URL", [settings.redis_url]), ("LOCK_REDIS_URLS", settings.lock_redis_urls or [])):
        for url in urls:
            try:
                connect(url).close()
            except ValueError as error:
                raise SettingsError(f"{name}: {error}") from error


def _require_smtp(settings: Settings) -> None:
    try:
        if settings.smtp_url:
            SmtpProvider(settings.smtp_url)
    except ValueError as error:
        raise SettingsError(f"SMTP_URL (a secret, not shown): {error}") from None


def _require_mailbox(url: str) -> None:
    try:
        parse_imap_url(url)
    except ValueError as error:
        raise SettingsError(f"BOUNCE_MAILBOX_URL (a secret, not shown): {error}") from None


def _qdrant_checks(settings: Settings) -> Iterator[Callable[[], object]]:
    if settings.qdrant_embedded:
        yield lambda: server_program.server_command(settings)
        yield lambda: server_program.require_writable(settings.qdrant_storage_path)
        yield lambda: server_program.require_writable(settings.qdrant_snapshots_path)
