"""docker-compose.yml as Compose itself reads it, with each of its profiles."""

import json
import os
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

import environment
from cloner.settings import Settings as OfCloner

ROOT = Path(__file__).parents[2]
ALWAYS = {"gateway", "cloner", "emulator", "jaeger"}
WATCHING = {"prometheus", "grafana", "collector"}
# In the place of Docker: says which services would be started or stopped.
DOCKER = """#!/bin/bash
given=()
for word in "${@:2}"; do
    case $word in up | down) exec docker-compose "${given[@]}" config --services ;; esac
    given+=("$word")
done
exec docker-compose "${given[@]}"
"""


def read(folder: Path, **variables: str) -> dict[str, Any]:
    """What Compose makes of the file, with such a .env."""
    file = folder / "compose.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    command = ("docker-compose", "--env-file", str(file), "config", "--format", "json")
    # Nothing that a shell has set, which would win over the file.
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environ, check=False, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_default(tmp_path: Path) -> None:
    """Without a profile there is what there always was, and a SQLite file on its volume."""
    found = read(tmp_path)

    assert ALWAYS == set(found["services"])
    assert (
        "sqlite:////var/lib/precall/precall.sqlite3"
        == (found["services"]["cloner"]["environment"]["DATABASE_URL"])
    )


def test_all_profiles(tmp_path: Path) -> None:
    """Every profile can be had beside every other, and takes nothing away."""
    found = read(tmp_path, COMPOSE_PROFILES="*")

    assert ALWAYS | {"postgres", "prometheus", "grafana"} <= set(found["services"])


def test_postgres(tmp_path: Path) -> None:
    """The lines that docs/DEPLOYMENT.md gives lead the cloner to the database that they make."""
    section = (ROOT / "docs" / "DEPLOYMENT.md").read_text().partition("### With Postgres\n")[2]
    lines = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].replace("...", "s3cretOfTheTests")
    told = dict(line.split("=", 1) for line in lines.splitlines())
    services = read(tmp_path, **told)["services"]
    cloner, postgres = services["cloner"], services["postgres"]
    url = urllib.parse.urlsplit(cloner["environment"]["DATABASE_URL"])

    assert ALWAYS | {"postgres"} == set(services)
    assert {
        "POSTGRES_USER": url.username, "POSTGRES_PASSWORD": url.password, "POSTGRES_DB": url.path.strip("/"),
    } == postgres["environment"]  # fmt: skip
    assert ("postgres", "service_healthy") == (url.hostname, cloner["depends_on"]["postgres"]["condition"])
    assert "ports" not in postgres
    assert re.fullmatch(r"postgres:[0-9]+\.[0-9]+-[a-z]+", postgres["image"])
    environ = {name: value for name, value in cloner["environment"].items() if value is not None}
    assert environment.read(OfCloner, environ).database_url == told["DATABASE_URL"]


def test_observability(tmp_path: Path) -> None:
    """What watches is as hardened as the rest, pinned, seen by this machine alone, and finds the files it is given."""
    given = {"COMPOSE_PROFILES": "observability", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    services = read(tmp_path, **given)["services"]
    added = {name: services[name] for name in sorted(services.keys() - ALWAYS)}

    assert ["collector", "grafana", "prometheus"] == list(added)
    for service in added.values():
        assert re.search(r":v?[0-9]+\.[0-9]+\.[0-9]+$", service["image"])
        for name in ("cap_drop", "security_opt", "read_only", "pids_limit", "restart", "init"):
            assert services["jaeger"][name] == service[name]
        assert {"127.0.0.1"} >= {port["host_ip"] for port in service.get("ports", [])}
        assert service["healthcheck"]["test"]
        assert int(service["mem_limit"])
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or (volume["read_only"] and Path(volume["source"]).exists())
    # Whoever is spoken to by name is there.
    assert services["jaeger"]["image"] == added["collector"]["image"]
    metrics = next(one for one in services["jaeger"]["command"] if "prometheus.endpoint" in one)
    assert metrics.partition("=http://")[2].partition(":")[0] in services
    for name in ("gateway", "cloner"):
        assert "http://collector:4318" == services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert "prometheus" == services[name]["environment"]["OTEL_METRICS_EXPORTER"]


@pytest.mark.parametrize(
    ("profiles", "started"), [("", ALWAYS | WATCHING), ("postgres", ALWAYS | WATCHING | {"postgres"})]
)
def test_recipes(tmp_path: Path, profiles: str, started: set[str]) -> None:
    """`just observe` takes nothing away that .env asks for, and `just down` leaves nothing running."""
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / ".env").write_text(f"COMPOSE_PROFILES={profiles}\n" if profiles else "")
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ("just", "--justfile", str(ROOT / "justfile"), "--working-directory", str(tmp_path))
    observed, ended = (
        subprocess.run([*command, recipe], env=environ, check=True, capture_output=True, text=True).stdout
        for recipe in ("observe", "down")
    )

    assert started == set(observed.splitlines()[:-1])
    assert ALWAYS | WATCHING | {"postgres"} == set(ended.splitlines())


def test_time_to_stop(tmp_path: Path) -> None:
    """A container is killed later than its process may need by default: what is in flight, then the last spans."""
    services = read(tmp_path)["services"]

    assert ["1m5s"] * 2 == [services[name]["stop_grace_period"] for name in ("gateway", "cloner")]
