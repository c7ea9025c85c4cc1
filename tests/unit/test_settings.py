"""The environment is read in one place, and an invalid value gives one clear line without secrets."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SettingsError
from worker.runtime.settings import Settings, is_worker, load, problems, variables

DATABASE = "postgresql://crm:hunter2@db/crm"
NEEDED = {"DATABASE_URL": DATABASE}
PROGRAMS = (
    "campaign",
    "reminders",
    "calls",
    "call-cleanup",
    "trial",
    "bounces",
    "knowledge",
    "web",
    "qdrant",
    "entrypoint",
)


def loaded(**environ: str) -> Settings:
    return load(NEEDED | environ, "campaign")


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(**environ)
    return str(caught.value)


def test_defaults() -> None:
    """With DATABASE_URL alone a job runs with the documented defaults."""
    settings = loaded()
    assert settings.database_url == DATABASE
    assert settings.redis_url == "redis://redis:6379"
    assert settings.lock_redis_urls is None
    assert settings.is_worker is True
    assert settings.state_dir == Path("/var/lib/crm-worker")
    assert (settings.campaign_interval_seconds, settings.campaign_batch_delay_seconds) == (60.0, 5.0)
    assert (settings.campaign_batch_size, settings.campaign_concurrency) == (100, 8)
    assert (settings.lock_ttl_ms, settings.shutdown_grace_seconds) == (60_000, 5.0)
    assert settings.campaign_adopt_after_seconds == 600.0
    assert (settings.whatsapp_rate, settings.gmail_rate) == (20.0, 1.0)
    assert settings.unconfirmed_sends == "fail"
    assert (settings.smtp_url, settings.app_url, settings.encryption_key) == (None, None, None)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("", None),
        ("lead_reminder:en", ("lead_reminder", "en")),
        (" lead_reminder_2:en_US ", ("lead_reminder_2", "en_US")),
        ("r:fil", ("r", "fil")),
        ("a" * 512 + ":hi", ("a" * 512, "hi")),
    ],
)
def test_a_template(value: str, wanted: tuple[str, str] | None) -> None:
    """A template of WhatsApp is named with its language."""
    assert load(NEEDED | {"REMINDER_WHATSAPP_TEMPLATE": value}, "reminders").reminder_whatsapp_template == wanted


@pytest.mark.parametrize(
    "value",
    [
        "lead_reminder", "lead_reminder:", ":en", "Lead_reminder:en", "lead-reminder:en", "lead reminder:en",
        "lead_reminder:EN", "lead_reminder:en-US", "lead_reminder:en_us", "lead_reminder:english", "a:b:en",
        "a" * 513 + ":en", "erinnerung_für:de",
    ],
)  # fmt: skip
def test_what_is_no_template(value: str) -> None:
    """What WhatsApp has no template for is refused at the start, and says what is allowed."""
    with pytest.raises(SettingsError, match=r"^REMINDER_WHATSAPP_TEMPLATE is .*name and language, such as"):
        load(NEEDED | {"REMINDER_WHATSAPP_TEMPLATE": value}, "reminders")


def test_missing_database() -> None:
    """A missing variable that is required is named with its purpose; an empty one counts as missing."""
    for environ in ({}, {"DATABASE_URL": ""}):
        with pytest.raises(SettingsError, match=r"^DATABASE_URL is not set: the CRM's PostgreSQL$"):
            load(environ, "campaign")


def test_empty_is_not_set() -> None:
    """An empty variable, as compose files may set it, means the default."""
    assert loaded(CAMPAIGN_INTERVAL="", SMTP_URL="", LOG_LEVEL="").campaign_interval_seconds == 60.0


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("90 sec", 90.0),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("5 min", 300.0),
        ("5m", 300.0),
        ("2H", 7200.0),
        (" 7 s ", 7.0),
    ],
)
def test_durations(raw: str, seconds: float) -> None:
    """A duration may have a unit; without one it counts in the variable's own unit."""
    assert loaded(CAMPAIGN_INTERVAL=raw).campaign_interval_seconds == seconds


def test_bare_numbers() -> None:
    """A number without a unit counts in milliseconds for the batch delay, and in seconds for the interval."""
    settings = loaded(CAMPAIGN_BATCH_DELAY="5000", CAMPAIGN_INTERVAL="5000", CAMPAIGN_ADOPT_AFTER="0")
    assert settings.campaign_batch_delay_seconds == 5.0
    assert settings.campaign_interval_seconds == 5000.0
    assert settings.campaign_adopt_after_seconds == 0.0


@pytest.mark.parametrize(
    ("name", "value", "field", "wanted"),
    [
        ("IS_WORKER", "False", "is_worker", False),
        ("IS_WORKER", "0", "is_worker", False),
        ("IS_WORKER", "no", "is_worker", False),
        ("IS_WORKER", " YES ", "is_worker", True),
        ("IS_WORKER", "1", "is_worker", True),
        ("LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("UNCONFIRMED_SENDS", "Resend", "unconfirmed_sends", "resend"),
        ("GMAIL_RATE", "0.01", "gmail_rate", 0.01),
        ("WHATSAPP_RATE", "80", "whatsapp_rate", 80.0),
        ("CAMPAIGN_CONCURRENCY", "256", "campaign_concurrency", 256),
        ("CAMPAIGN_BATCH_SIZE", "1", "campaign_batch_size", 1),
        ("LOCK_TTL_MS", "1000", "lock_ttl_ms", 1000),
        ("APP_URL", "https://crm.example.in/", "app_url", "https://crm.example.in"),
        ("SMTP_URL", "smtp://127.0.0.1:2525", "smtp_url", "smtp://127.0.0.1:2525"),
        ("SMTP_URL", "smtps://a:b@mail.example:465", "smtp_url", "smtps://a:b@mail.example:465"),
        ("REDIS_URL", "unix:///run/redis.sock", "redis_url", "unix:///run/redis.sock"),
        ("REDIS_URL", "redis+sentinel://a:1,b:2/m/0", "redis_url", "redis+sentinel://a:1,b:2/m/0"),
        ("LOCK_REDIS_URLS", "redis://a rediss://b", "lock_redis_urls", ["redis://a", "rediss://b"]),
        ("ENCRYPTION_KEY", " " + "aB" * 32, "encryption_key", "aB" * 32),
        ("STATE_DIR", "/srv/state", "state_dir", Path("/srv/state")),
        ("UNSUBSCRIBE_URL", "mailto:stop@a.example", "unsubscribe_url", "mailto:stop@a.example"),
    ],
)
def test_readers(name: str, value: str, field: str, wanted: Any) -> None:
    """Each kind of value is parsed as documented."""
    assert getattr(loaded(**{name: value}), field) == wanted


BAD = [
    ("CAMPAIGN_INTERVAL", "soon", "a duration such as 30s, 5min or 500ms (a number without a unit counts in s)"),
    ("CAMPAIGN_INTERVAL", "-1", "a duration such as"),
    ("CAMPAIGN_INTERVAL", "5 days", "a duration such as"),
    ("CAMPAIGN_INTERVAL", "nan", "a duration such as"),
    ("CAMPAIGN_INTERVAL", "inf", "a duration such as"),
    ("CAMPAIGN_INTERVAL", "0", "from 0.1 seconds to 31 days"),
    ("CAMPAIGN_RETRY_DELAY", "1ms", "from 0.1 seconds to 31 days"),
    ("CAMPAIGN_BATCH_SIZE", "0", "a whole number from 1 to 10000"),
    ("CAMPAIGN_BATCH_SIZE", "1e3", "a whole number from 1 to 10000"),
    ("CAMPAIGN_BATCH_SIZE", "10001", "a whole number from 1 to 10000"),
    ("CAMPAIGN_CONCURRENCY", "257", "a whole number from 1 to 256"),
    ("CAMPAIGN_MAX_ATTEMPTS", "9" * 5000, "a whole number from 1 to 100"),
    ("LOCK_TTL_MS", "999", "a whole number from 1000 to 3600000"),
    ("LOCK_TTL_MS", "60 s", "a whole number from 1000 to 3600000"),
    ("GMAIL_RATE", "0", "a number of messages a second, at least 0.01"),
    ("WHATSAPP_RATE", "-3", "a number of messages a second, at least 0.01"),
    ("IS_WORKER", "maybe", "true or false"),
    ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
    ("LOG_FORMAT", "xml", "one of text, json"),
    ("UNCONFIRMED_SENDS", "guess", "one of fail, resend"),
    ("GMAIL_API_URL", "ftp://a", "a URL that begins with https:// or http://"),
    ("GMAIL_API_URL", "gmail.googleapis.com", "a URL that begins with https:// or http://"),
    ("APP_URL", "https://[::1", "a URL that begins with https:// or http://"),
    ("APP_URL", "https://", "a URL that begins with https:// or http://"),
    ("STATE_DIR", "var/lib", "an absolute path"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_bad_values(name: str, value: str, allowed: str) -> None:
    """One line names the variable, the value and what is allowed."""
    line = refusal(**{name: value})
    assert line.startswith(f"{name} is {value!r}, allowed is {allowed}")
    assert line.isprintable()


REDIS_SCHEMES = (
    "redis:// or rediss:// or unix:// or redis+sentinel:// or rediss+sentinel:// or valkey:// or valkeys://"
)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DATABASE_URL", "mysql://crm:hunter2@db/crm", "postgresql:// or postgres://"),
        ("REDIS_URL", "http://:hunter2@redis", REDIS_SCHEMES),
        ("LOCK_REDIS_URLS", "redis://a hunter2", REDIS_SCHEMES),
        ("SMTP_URL", "smpt://crm:hunter2@mail.example", "smtp:// or smtps://"),
        ("ENCRYPTION_KEY", "hunter2" * 9, "64 hex digits (32 bytes)"),
    ],
)
def test_secrets(name: str, value: str, allowed: str) -> None:
    """The error for a secret names the variable and what is allowed; neither it nor its cause has the value."""
    with pytest.raises(SettingsError) as caught:
        loaded(**{name: value})
    line = str(caught.value)
    assert line.startswith(f"{name} is (a secret, not shown), allowed is ")
    assert line.endswith(allowed)
    assert "hunter2" not in line
    assert caught.value.__suppress_context__


def said_of(name: str, value: str) -> str:
    """The error text for a value; '' if it is valid."""
    try:
        loaded(**{name: value})
    except SettingsError as error:
        return str(error)
    return ""


@given(st.sampled_from(["DATABASE_URL", "REDIS_URL", "SMTP_URL", "ENCRYPTION_KEY"]), st.text(max_size=80))
def test_no_secret_leaks(name: str, noise: str) -> None:
    """Whatever is wrong with a secret, no part of it is in the message."""
    secret = noise + "hunter2"
    assert "hunter2" not in said_of(name, secret)


@given(st.sampled_from(sorted({name for name, _, _ in BAD})), st.text(min_size=1, max_size=200))
def test_one_line(name: str, value: str) -> None:
    """For any text in a variable, the result is a value, or one printable line that begins with its name."""
    line = said_of(name, value)
    assert not line or (line.startswith(f"{name} is ") and line.isprintable())


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "SMTP_URL", "CAMPAIGN_INTERVAL", "LOG_FORMAT"])
def test_from_a_file(tmp_path: Path, name: str) -> None:
    """Any variable may come from the file that NAME_FILE names; a line end at the end of the file is ignored."""
    values = {
        "DATABASE_URL": "postgres://other/crm",
        "REDIS_URL": "redis://other",
        "SMTP_URL": "smtps://other",
        "CAMPAIGN_INTERVAL": "7s",
        "LOG_FORMAT": "json",
    }
    path = tmp_path / "value"
    path.write_text(values[name] + "\n")
    environ = {key: value for key, value in NEEDED.items() if key != name}
    settings = load(environ | {f"{name}_FILE": str(path)}, "campaign")
    field = next(each.name for each in fields(Settings) if each.metadata["variable"].name == name)
    assert getattr(settings, field) == (7.0 if name == "CAMPAIGN_INTERVAL" else values[name])


def test_the_variable_wins_over_its_file(tmp_path: Path) -> None:
    """A variable that is set is used, and its file is not opened."""
    assert loaded(LOG_FORMAT="json", LOG_FORMAT_FILE=str(tmp_path / "none")).log_format == "json"


def test_bad_files(tmp_path: Path) -> None:
    """A file that cannot be read is named with its variable; an empty one counts as not set."""
    line = refusal(SMTP_URL_FILE=str(tmp_path / "none"))
    assert line.startswith(f"SMTP_URL_FILE={tmp_path / 'none'} cannot be read: ")
    latin = tmp_path / "latin"
    latin.write_bytes(b"smtp://hunter2\xff")
    line = refusal(SMTP_URL_FILE=str(latin))
    assert line.startswith(f"SMTP_URL_FILE={latin} cannot be read: ")
    assert "hunter2" not in line
    (tmp_path / "empty").write_text(" \n")
    assert loaded(SMTP_URL_FILE=str(tmp_path / "empty")).smtp_url is None


def test_a_secret_in_a_file_stays_secret(tmp_path: Path) -> None:
    """An invalid secret from a file is not shown either."""
    path = tmp_path / "key"
    path.write_text("hunter2\n")
    line = refusal(ENCRYPTION_KEY_FILE=str(path))
    assert line == "ENCRYPTION_KEY is (a secret, not shown), allowed is 64 hex digits (32 bytes)"


def test_variables_of_other_jobs() -> None:
    """A job does not read the variables of other jobs, so an error in them does not stop it."""
    environ = NEEDED | {"CAMPAIGN_INTERVAL": "nonsense", "SMTP_URL_FILE": "/none", "ENCRYPTION_KEY": "x"}
    settings = load(environ, "call-cleanup")
    assert settings.campaign_interval_seconds == 60.0
    assert settings.smtp_url is None
    with pytest.raises(SettingsError, match=r"^LOG_LEVEL is 'x'"):
        load(environ | {"LOG_LEVEL": "x"}, "call-cleanup")


def test_what_only_one_job_needs() -> None:
    """Without APP_URL only `calls` does not start; a variable of several jobs is read by each of them."""
    with pytest.raises(SettingsError, match=r"^APP_URL is not set: the CRM's address"):
        load(NEEDED, "calls")
    assert load(NEEDED, "campaign").app_url is None
    for job in ("campaign", "reminders", "trial"):
        assert load(NEEDED | {"SMTP_URL": "smtp://127.0.0.1:25"}, job).smtp_url == "smtp://127.0.0.1:25"


@pytest.mark.parametrize("raw", ["Asia/Kolkatta", "../etc/passwd", "IST+5:30", "a" * 5000, "\x00", "__init__/0"])
def test_time_zones(raw: str) -> None:
    """A zone is named as in the tz database; an unknown name is an error, and no other file is opened."""
    assert str(load(NEEDED, "call-cleanup").cleanup_timezone) == "Asia/Kolkata"
    assert str(load(NEEDED | {"CLEANUP_TIMEZONE": "Europe/Paris"}, "call-cleanup").cleanup_timezone) == "Europe/Paris"
    with pytest.raises(SettingsError, match=r"^CLEANUP_TIMEZONE is .*, allowed is a time zone such as"):
        load(NEEDED | {"CLEANUP_TIMEZONE": raw}, "call-cleanup")


@pytest.mark.parametrize(
    ("raw", "url"),
    [
        ("http://qdrant", "http://qdrant:6333"),
        ("https://qdrant.example.in/", "https://qdrant.example.in:6333"),
        ("https://qdrant.example.in:443/vectors", "https://qdrant.example.in:443/vectors"),
        ("http://[::1]:6444", "http://[::1]:6444"),
    ],
)
def test_the_vector_database(raw: str, url: str) -> None:
    """Without a port in the URL it is 6333, as in Qdrant's clients, so that all programs use the same one."""
    assert load(NEEDED | {"QDRANT_URL": raw}, "knowledge").qdrant_url == url


def test_a_password_in_a_url_that_takes_none() -> None:
    """It is refused, and not shown."""
    for raw in ("http://user:hunter2@qdrant:6333", "http://user:hunt@er2@qdrant:99999"):
        with pytest.raises(SettingsError, match=r"^QDRANT_URL is 'http://\.\.\.@qdrant") as caught:
            load(NEEDED | {"QDRANT_URL": raw}, "web")
        assert "hunt" not in str(caught.value)


@pytest.mark.parametrize("raw", ["", ".", "..", "a/b", "a b", "x" * 201, "naïve"])
def test_names_of_collections(raw: str) -> None:
    """Nothing that has a meaning in a path or a URL is allowed; empty counts as not set."""
    environ = NEEDED | {"VECTOR_COLLECTION_NAME": raw}
    if not raw:
        assert load(environ, "knowledge").vector_collection_name == "bharat_crm_knowledge"
        return
    with pytest.raises(SettingsError, match=r"^VECTOR_COLLECTION_NAME is "):
        load(environ, "knowledge")


def test_the_owners_address() -> None:
    """OWNER_EMAIL must be a valid address, or the program does not start."""
    assert load(NEEDED | {"OWNER_EMAIL": " owner@crm.example.in "}, "trial").owner_email == "owner@crm.example.in"
    with pytest.raises(SettingsError, match=r"^OWNER_EMAIL is 'owner', allowed is an e-mail address"):
        load(NEEDED | {"OWNER_EMAIL": "owner"}, "trial")


def test_every_variable_is_explained() -> None:
    """Every variable has a unique name, a purpose, and a default that its own parser accepts."""
    found = variables()
    assert {each.name for program in PROGRAMS for each in variables(program)} == {each.name for each in found}
    assert len({each.name for each in found}) == len(found) == len(fields(Settings))
    for each in found:
        assert re.fullmatch(r"[A-Z_]+", each.name)
        assert each.purpose
        assert each.default is None or each.parse(each.default) is not None
    secrets = {each.name for each in found if each.secret}
    servers = {"DATABASE_URL", "REDIS_URL", "LOCK_REDIS_URLS", "SMTP_URL", "BOUNCE_MAILBOX_URL", "QDRANT_API_KEY"}
    assert secrets == servers | {"ENCRYPTION_KEY", "METRICS_TOKEN", "UNSUBSCRIBE_KEY"}


def test_the_environment_is_read_nowhere_else() -> None:
    """No other module reads a setting from the environment; variables of terminals and supervisord are none."""
    folder = Path(load.__code__.co_filename).parent
    texts = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.py")}
    readers = {name: text for name, text in texts.items() if re.search(r"os\.environ|getenv", text)}
    assert readers.keys() <= {"program.py", "status.py", "watchdog.py"}
    named = {each.name for each in variables()}
    for name in readers.keys() - {"program.py"}:
        assert not named & set(re.findall(r"[\"']([A-Z_]+)[\"']", readers[name])), name
        assert "is_worker(os.environ" not in readers[name]
        assert "load(os.environ" not in readers[name]


def test_home_directories() -> None:
    """A folder may be in a user's home; the name of an unknown user is refused like any invalid value."""
    assert loaded(STATE_DIR="~/state").state_dir == Path.home() / "state"
    assert (
        refusal(STATE_DIR="~no-such-user/state") == "STATE_DIR is '~no-such-user/state', allowed is an absolute path"
    )


@pytest.mark.parametrize("name", ["CAMPAIGN_ADOPT_AFTER", "CAMPAIGN_INTERVAL", "CAMPAIGN_BATCH_DELAY"])
def test_endless_durations(name: str) -> None:
    """A duration too long for calendar calculations is refused at start, not in every tick."""
    assert refusal(**{name: "99999999999s"}).startswith(f"{name} is ")


@pytest.mark.parametrize("raw", ["false", "0", "no"])
def test_no_worker_needs_nothing_else(raw: str) -> None:
    """If IS_WORKER is false, no other variable has to be set."""
    assert is_worker({"IS_WORKER": raw}) is False
    assert is_worker({}) is True


KEY = "5a" * 32
PUBLIC = {"PUBLIC_URL": "https://mail.crm.example.in", "UNSUBSCRIBE_KEY": KEY}


@pytest.mark.parametrize(
    ("raw", "url"),
    [
        ("https://mail.crm.example.in/", "https://mail.crm.example.in"),
        (" https://crm.example.in:8443/mail ", "https://crm.example.in:8443/mail"),
        ("http://127.0.0.1:3003", "http://127.0.0.1:3003"),
        ("http://localhost:3003", "http://localhost:3003"),
        ("http://[::1]:3003", "http://[::1]:3003"),
    ],
)
def test_the_public_address(raw: str, url: str) -> None:
    """What stands in links: with TLS, or on this machine."""
    for program in ("campaign", "web"):
        assert load(NEEDED | PUBLIC | {"PUBLIC_URL": raw}, program).public_url == url


@pytest.mark.parametrize(
    "raw",
    [
        "http://mail.crm.example.in", "mail.crm.example.in", "https://", "https://a.example/?x=1", "https://a.example/#x",
        "https://u:hunter2@a.example", "https://a.example:99999", "https://a b.example", "https://a.example/{{name}}",
        "https://a.example/<x>", "https://" + "a" * 250 + ".example", "https://bücher.example", "ftp://a.example",
        "https://[::1",
    ],
)  # fmt: skip
def test_public_addresses_that_make_no_link(raw: str) -> None:
    with pytest.raises(SettingsError, match=r"^PUBLIC_URL is .*, allowed is an https:// address") as caught:
        load(NEEDED | PUBLIC | {"PUBLIC_URL": raw}, "web")
    assert "hunter2" not in str(caught.value)


def test_the_keys_of_links() -> None:
    """UNSUBSCRIBE_KEY, which may be several, then ENCRYPTION_KEY, for older links; without any there are none."""
    both = NEEDED | PUBLIC | {"UNSUBSCRIBE_KEY": f"{KEY}  {'0f' * 32}", "ENCRYPTION_KEY": "ab" * 32}
    assert load(both, "campaign").link_keys == load(both, "web").link_keys == [KEY, "0f" * 32, "ab" * 32]
    assert load(both | {"UNSUBSCRIBE_KEY": ""}, "web").link_keys == ["ab" * 32]
    for program in ("campaign", "web"):
        line = "PUBLIC_URL is set, and neither UNSUBSCRIBE_KEY nor ENCRYPTION_KEY: links need a key"
        with pytest.raises(SettingsError) as caught:
            load(NEEDED | {"PUBLIC_URL": PUBLIC["PUBLIC_URL"]}, program)
        assert str(caught.value) == line
        assert problems(NEEDED | {"PUBLIC_URL": PUBLIC["PUBLIC_URL"]}, [program]) == [line]
    for bad in ("hunter2", f"{KEY} hunter2", KEY[:-1]):
        with pytest.raises(SettingsError, match=r"^UNSUBSCRIBE_KEY is \(a secret, not shown\), allowed is 64 hex"):
            load(NEEDED | PUBLIC | {"UNSUBSCRIBE_KEY": bad}, "web")


def test_the_status_page_is_not_public() -> None:
    """Both addresses on one port would be one address; without PUBLIC_URL there is only one."""
    same = {"PORT": "3003"}
    assert load(NEEDED | same, "web").public_url is None
    with pytest.raises(SettingsError, match=r"^PORT and PUBLIC_PORT are both 3003"):
        load(NEEDED | PUBLIC | same, "web")


def test_trusted_proxies() -> None:
    """Addresses and networks; by default this machine."""
    assert [str(each) for each in load(NEEDED, "web").public_proxies] == ["127.0.0.0/8", "::1/128"]
    named = load(NEEDED | {"PUBLIC_PROXIES": "10.0.0.5 fd00::/8"}, "web").public_proxies
    assert [str(each) for each in named] == ["10.0.0.5/32", "fd00::/8"]
    with pytest.raises(SettingsError, match=r"^PUBLIC_PROXIES is '10.0.0.5/8', allowed is addresses or networks"):
        load(NEEDED | {"PUBLIC_PROXIES": "10.0.0.5/8"}, "web")


def test_hours() -> None:
    """CALL_WINDOW has a default, CALL_WINDOWS names countries by calling code, campaigns have no hours at first."""
    calls = NEEDED | {"APP_URL": "https://crm.example.in"}
    settings = load(calls, "calls")
    assert (str(settings.call_window), settings.call_windows) == ("08:00-21:00", {})
    assert load(NEEDED, "campaign").campaign_window is None
    changed = {"CALL_WINDOW": " 9:00-20:00 ", "CALL_WINDOWS": "+44=08:00-20:00  +971=00:00-24:00\n"}
    settings = load(calls | changed, "calls")
    assert str(settings.call_window) == "09:00-20:00"
    shown = {code: str(window) for code, window in settings.call_windows.items()}
    assert shown == {44: "08:00-20:00", 971: "00:00-24:00"}
    assert str(load(NEEDED | {"CAMPAIGN_WINDOW": "22:00-6:00"}, "campaign").campaign_window) == "22:00-06:00"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *[
            ("CALL_WINDOW", each, "hours such as 09:00-21:00")
            for each in ("9-21", "09:00", "09:00-25:00", "off", "x" * 999)
        ],
        *[
            ("CALL_WINDOWS", each, "hours by calling code, separated by spaces, .*no such code: ")
            for each in ("44=08:00-20:00", "+999=08:00-20:00", "UK=1")
        ],
        *[
            ("CALL_WINDOWS", each, "hours by calling code, separated by spaces, .*no such hours: ")
            for each in ("+44", "+44=", "+44=8-20", "+91=09:00-21:00,+1=08:00-21:00")
        ],
        ("CALL_WINDOWS", "+44=08:00-20:00 +44=09:00-18:00", "hours by calling code, .*there twice: \\+44"),
    ],
)
def test_what_are_no_hours(name: str, value: str, allowed: str) -> None:
    """A typing mistake does not let phones ring at night: the job does not start."""
    with pytest.raises(SettingsError, match=rf"^{name} is .*, allowed is {allowed}"):
        load(NEEDED | {"APP_URL": "https://crm.example.in", name: value}, "calls")
