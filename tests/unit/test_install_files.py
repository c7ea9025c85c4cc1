"""The files and commands of docs/install.md agree: compose files, systemd unit, settings, image."""

import itertools
import re
import shlex
import subprocess
from configparser import ConfigParser, RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.runtime.settings import variables

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf"
PAGE = PROJECT / "docs" / "install.md"
UNIT = CONF / "systemd" / "crm-worker.service"
COMPOSE = CONF / "compose.yaml"
STANDBY = CONF / "compose.standby.yaml"
SENDERS = CONF / "compose.senders.yaml"
OVERLAYS = [STANDBY, CONF / "compose.snapshots.yaml", SENDERS]
ETC = "${CRM_WORKER_ETC:-/etc/crm-worker}"
SERVICES = ("worker", "postgres", "redis", "prometheus")
WORKERS_SECRETS = {each.name for each in variables() if each.secret}
VARIABLES = {each.name for each in variables()}
# what is not the worker's: the locale, and the bundled PostgreSQL's
FOREIGN = {"LANG", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE", "POSTGRES_INITDB_ARGS"}


class ComposeLoader(yaml.SafeLoader):
    """Knows Compose's own tags for what replaces a value of the file below, or removes it."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))
ComposeLoader.add_constructor("!reset", lambda _loader, _node: None)


def compose(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(path.read_text("utf-8"), ComposeLoader)  # noqa: S506 - a SafeLoader
    return loaded


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose(COMPOSE)["services"]
    return found


def unit() -> dict[str, list[str]]:
    """The lines of [Service]: directive -> its values."""
    found: dict[str, list[str]] = {}
    body = UNIT.read_text("utf-8").partition("[Service]")[2].partition("[Install]")[0]
    for line in body.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def unit_environment() -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit()["Environment"])


def assignments(path: Path) -> list[str]:
    """The names that an example file sets, or shows as a comment."""
    return re.findall(r"^#?([A-Z][A-Z0-9_]*)=", path.read_text("utf-8"), flags=re.MULTILINE)


def blocks() -> list[str]:
    """The commands of the page."""
    return re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def docker_run() -> list[str]:
    (block,) = [block for block in blocks() if block.startswith("docker run --detach")]
    return shlex.split(block.replace("\\\n", " "))


def values(arguments: list[str], option: str) -> list[str]:
    return [after for before, after in itertools.pairwise(arguments) if before == option]


def known(name: str) -> bool:
    return name in VARIABLES | FOREIGN or (name.endswith("_FILE") and name.removesuffix("_FILE") in VARIABLES)


def test_every_variable_is_one_that_a_program_reads(services: dict[str, dict[str, Any]]) -> None:
    """A misspelt variable would be ignored silently."""
    named = set(unit_environment()) | set(assignments(CONF / "worker.env.example"))
    named |= {each.partition("=")[0] for each in values(docker_run(), "--env")}
    for service in [*services.values(), *(compose(path)["services"]["worker"] for path in OVERLAYS)]:
        named |= set(service.get("environment", {}))
    assert {name for name in named if not known(name)} == set()


def test_every_value_of_compose_is_in_its_example() -> None:
    """conf/compose.env.example lists the variables of the compose files, and nothing else."""
    asked = set()
    for path in [COMPOSE, *OVERLAYS]:
        asked |= set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", path.read_text("utf-8")))
    offered = set(assignments(CONF / "compose.env.example"))
    assert offered - {"COMPOSE_FILE", "COMPOSE_PROFILES"} == asked


def test_the_settings_example_is_read_alike_by_docker_compose_and_systemd() -> None:
    """Each of them treats quotes, dollar signs, backslashes and comments after a value differently."""
    for line in (CONF / "worker.env.example").read_text("utf-8").splitlines():
        assert not line or line.startswith("# ") or re.fullmatch(r"#?[A-Z][A-Z0-9_]*=[^'\"$\\#]*", line), line
        assert line == line.strip()


def test_every_secret_comes_from_a_file_in_all_three_ways(services: dict[str, dict[str, Any]]) -> None:
    """The worker's secrets are never in an environment, and each way passes the same seven files."""
    wanted = {f"{name}_FILE" for name in WORKERS_SECRETS - {"LOCK_REDIS_URLS"}}
    in_container = {name: f"/run/secrets/{name.removesuffix('_FILE').lower()}" for name in wanted}
    environment = services["worker"]["environment"]
    assert {name: path for name, path in environment.items() if name.endswith("_FILE")} == in_container
    assert set(services["worker"]["secrets"]) == {Path(path).name for path in in_container.values()}
    run = dict(each.split("=", 1) for each in values(docker_run(), "--env"))
    assert run == in_container
    credentials = dict(each.split(":", 1) for each in unit()["LoadCredential"])
    assert credentials == {
        Path(path).name: f"/etc/crm-worker/secrets/{Path(path).name}" for path in in_container.values()
    }
    of_unit = {name: path for name, path in unit_environment().items() if name.endswith("_FILE")}
    assert of_unit == {name: f"%d/{Path(path).name}" for name, path in in_container.items()}
    everything = [
        environment,
        unit_environment(),
        *(compose(path)["services"]["worker"]["environment"] for path in OVERLAYS),
    ]
    assert not WORKERS_SECRETS & set().union(*everything, assignments(CONF / "worker.env.example"))


def test_the_page_makes_every_secret_file() -> None:
    """Compose and systemd do not start if the file of a secret is missing."""
    made = set(re.findall(r"> (\w+)$", "".join(blocks()), flags=re.MULTILINE))
    made |= set(" ".join(re.findall(r"^touch (.+)$", "".join(blocks()), flags=re.MULTILINE)).split())
    for name, secret in compose(COMPOSE)["secrets"].items():
        assert secret == {"file": f"{ETC}/secrets/{name}"}
        assert name in made
    for name in (each.partition(":")[0] for each in unit()["LoadCredential"]):
        assert name in made


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_limited_watched_and_restarted(name: str, services: dict[str, dict[str, Any]]) -> None:
    """No container can use up the machine, fill its disk with logs, gain rights, or stay down unnoticed."""
    service = services[name]
    assert service["restart"] == "unless-stopped"
    assert {"mem_limit", "cpus", "pids_limit", "stop_grace_period"} <= service.keys()
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), "not root"
    assert set(service["networks"]) <= {"front", "data"}


def test_compose_names_all_services_there_are(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == set(SERVICES)
    assert [name for name in SERVICES if "profiles" in services[name]] == ["postgres", "redis"]
    optional = {"condition": "service_healthy", "required": False}
    assert services["worker"]["depends_on"] == {"postgres": optional, "redis": optional}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str, services: dict[str, dict[str, Any]]) -> None:
    """To a version of at least major and minor; the worker's is the project's own."""
    setup = ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    version = setup["metadata"]["version"]
    if name == "worker":
        assert services[name]["image"] == f"${{CRM_WORKER_IMAGE:-crm-worker:{version}}}"
        assert docker_run()[-1] == f"crm-worker:{version}"
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+[\w.-]*", services[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_is_published_only_to_this_machine_by_default(name: str, services: dict[str, dict[str, Any]]) -> None:
    """PostgreSQL and Redis publish no port, and their network is internal."""
    ports = services[name].get("ports", [])
    assert bool(ports) == (name in ("worker", "prometheus"))
    for port in ports:
        assert re.match(r"\$\{[A-Z]+_BIND:-127\.0\.0\.1\}:", port), port
    if not ports:
        assert services[name]["networks"] == ["data"]
        assert compose(COMPOSE)["networks"]["data"] == {"internal": True}
    assert all(re.match(r"127\.|10\.", each) for each in values(docker_run(), "--publish"))


def test_what_is_mounted_exists(services: dict[str, dict[str, Any]]) -> None:
    """As a folder of the project, or as a volume in the list at the end."""
    named = compose(COMPOSE)["volumes"].keys()
    used = set()
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in named or (CONF / source).is_dir(), source
            used.add(source)
    assert set(named) <= used
    assert (CONF / services["worker"]["build"]["context"] / services["worker"]["build"]["dockerfile"]).is_file()


def test_the_standby_has_no_qdrant_and_a_different_name() -> None:
    """Two Qdrants would drift apart, and two workers with the same name could not be distinguished."""
    first, second = compose(COMPOSE), compose(STANDBY)
    worker = second["services"]["worker"]
    assert worker["environment"]["QDRANT_EMBEDDED"] == "false"
    assert worker["environment"]["QDRANT_URL"].startswith("${QDRANT_URL:?")
    assert worker["environment"]["MIGRATE"] == "false"
    assert [port.rpartition(":")[2] for port in worker["ports"]] == ["3002", "3003"]
    assert "ports: !override" in STANDBY.read_text("utf-8"), "else the first machine's ports are published, too"
    for place in ("hostname", "container_name"):
        assert worker[place] != first["services"]["worker"][place]
    assert second["name"] != first["name"]
    assert second["services"]["prometheus"] == {"profiles": ["prometheus"]}


def test_the_senders_are_containers_of_their_own() -> None:
    """The worker queues for them, and each has a name, a host name and no port that another one has, too."""
    services = compose(SENDERS)["services"]
    sender = services["sender"]
    assert sender["extends"] == {"file": COMPOSE.name, "service": "worker"}
    assert [sender[each] for each in ("container_name", "hostname", "ports")] == [None, None, None]
    assert sender["entrypoint"] == ["/opt/crm-worker/bin/campaign-sender"]
    assert sender["healthcheck"] == {"disable": True}, "there is no web in it"
    assert sender["scale"] == "${SENDERS:-2}"
    assert {each["environment"]["CAMPAIGN_ENGINE"] for each in services.values()} == {"procrastinate"}


def test_redis_evicts_nothing_and_hides_its_password(services: dict[str, dict[str, Any]]) -> None:
    """It reads its configuration from stdin; half of its memory is reserved for rewriting its append-only file."""
    redis = services["redis"]
    lines = redis["command"][-1].splitlines()
    assert lines[0] == "exec redis-server - <<END"
    assert lines[-1] == "END"
    directives = dict(line.split(" ", 1) for line in lines[1:-1])
    assert directives["appendonly"] == "yes"
    assert directives["maxmemory-policy"] == "noeviction"
    assert directives["requirepass"] == "$$(cat /run/secrets/redis_password)"
    assert int(directives["maxmemory"].removesuffix("mb")) * 2 <= int(redis["mem_limit"].removesuffix("m"))
    assert redis["healthcheck"]["test"][1].startswith(
        "REDISCLI_AUTH=$$(cat /run/secrets/redis_password) redis-cli ping"
    )


def test_prometheus_reads_its_configuration_with_three_changes(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The command in compose.yaml changes only three values of conf/prometheus/prometheus.yml."""
    script = services["prometheus"]["command"][0].partition("exec ")[0]
    made = tmp_path / "prometheus.yml"
    script = script.replace(
        "/etc/crm-worker/prometheus.yml", shlex.quote(str(CONF / "prometheus" / "prometheus.yml"))
    )
    script = script.replace("/tmp/prometheus.yml", shlex.quote(str(made)))  # noqa: S108 - a path in the container
    subprocess.run(["/bin/sh", "-ec", script], check=True)
    expected = yaml.safe_load((CONF / "prometheus" / "prometheus.yml").read_text("utf-8"))
    expected["rule_files"] = ["/etc/crm-worker/alerts.yml"]
    (scrape,) = expected["scrape_configs"]
    scrape["static_configs"] = [{"targets": ["worker:3002"]}]
    scrape["basic_auth"] = {"username": "prometheus", "password_file": "/run/secrets/metrics_token"}
    assert yaml.safe_load(made.read_text("utf-8")) == expected


def test_the_unit_can_write_where_it_has_to() -> None:
    """All folders except those that systemd creates for it are read-only."""
    lines, environment = unit(), unit_environment()
    assert lines["ProtectSystem"] == ["strict"]
    states = [Path("/var/lib") / name for name in lines["StateDirectory"][0].split()]
    assert Path(environment["STATE_DIR"]) in states
    for name in ("QDRANT__STORAGE__STORAGE_PATH", "QDRANT__STORAGE__SNAPSHOTS_PATH"):
        assert Path(environment[name]).parent in states
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(CONF / "supervisord.worker.conf")
    logs = [Path("/var/log") / name for name in lines["LogsDirectory"]]
    sockets = [Path("/run") / name for name in lines["RuntimeDirectory"]]
    assert Path(conf["supervisord"]["childlogdir"]) in logs
    assert Path(conf["supervisord"]["pidfile"]).parent in sockets
    assert Path(conf["unix_http_server"]["file"]).parent in sockets
    for command in lines["ExecStart"]:
        assert (PROJECT / Path(command).relative_to("/opt/crm-worker")).is_file()


def test_a_stop_waits_longer_than_supervisord_does(services: dict[str, dict[str, Any]]) -> None:
    """Docker, Compose and systemd give supervisord the time to drain its programs."""
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(CONF / "supervisord.worker.conf")
    longest = max(
        conf.getint(each, "stopwaitsecs") for each in conf.sections() if conf.has_option(each, "stopwaitsecs")
    )
    assert int(unit()["TimeoutStopSec"][0]) > longest
    assert int(services["worker"]["stop_grace_period"].removesuffix("s")) > longest
    assert int(values(docker_run(), "--stop-timeout")[0]) > longest
    assert unit()["KillMode"] == ["mixed"]
    assert unit()["RestartPreventExitStatus"] == ["2"]


def test_the_page_and_the_image_name_the_same_user_and_qdrant() -> None:
    """The programs could not use a secret, a volume or a snapshot folder of another user."""
    dockerfile = (PROJECT / "Dockerfile.worker").read_text("utf-8")
    (user,) = re.findall(r"^USER (\d+):\d+$", dockerfile, flags=re.MULTILINE)
    (qdrant,) = re.findall(r"^ARG QDRANT_VERSION=(v[\d.]+)$", dockerfile, flags=re.MULTILINE)
    page = PAGE.read_text("utf-8")
    versions = re.findall(r"qdrant/releases/tag/(v[\d.]+\d)|download (v[\d.]+\d)", page)
    assert set(versions) == {(qdrant, ""), ("", qdrant)}
    assert f"chown root:{user} /etc/crm-worker/secrets" in page
    assert f"-o {user} -g {user} /srv/crm-worker-snapshots" in page
    assert compose(COMPOSE)["services"]["worker"]["user"] == f"{user}:{user}"
    assert f"uid={user},gid={user}" in values(docker_run(), "--tmpfs")[0]
    volumes = re.findall(r'"(/[^"]+)"', re.findall(r"^VOLUME (.+)$", dockerfile, flags=re.MULTILINE)[0])
    mounted = [each.split(":")[1] for each in values(docker_run(), "--volume")] + ["/run"]
    assert set(volumes) <= set(mounted)


def test_the_commands_of_the_page_name_what_exists() -> None:
    """Every program and file of the project in its commands exists."""
    typed = "".join(blocks())
    named = set(re.findall(r"(?<![\w/.])((?:bin|conf|docs)/[\w./-]*\w)", typed))
    named |= {name for name in re.findall(r"/opt/crm-worker/((?:bin|conf|docs)/[\w./-]*\w)", typed)}
    assert len(named) > 8
    assert {name for name in named if not (PROJECT / name).exists()} == set()
    for command in re.findall(r"bin/knowledge (\w+)", typed):
        assert command in ("snapshot", "verify", "restore")


def test_the_page_grants_what_the_runbook_lists() -> None:
    """The awk command of the page prints the GRANT statements of docs/operating.md, and nothing else."""
    (awk,) = set(re.findall(r"awk '([^']+)' (?:/opt/crm-worker/)?docs/operating\.md", "".join(blocks())))
    argv = ["awk", awk, str(PROJECT / "docs" / "operating.md")]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    statements = [" ".join(each.split()) for each in text.split(";") if each.strip()]
    assert len(statements) > 10
    for statement in statements:
        assert re.fullmatch(r"GRANT .+ TO crm_worker", statement), statement
