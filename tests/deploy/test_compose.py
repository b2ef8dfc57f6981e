"""docker-compose.yml as Compose itself reads it, with each of its profiles."""

import json
import os
import re
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import environment
from cloner.settings import Settings as OfCloner

ROOT = Path(__file__).parents[2]
ALWAYS = {"gateway", "cloner", "emulator", "jaeger"}


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


def test_time_to_stop(tmp_path: Path) -> None:
    """A container is killed later than its process may need by default: what is in flight, then the last spans."""
    services = read(tmp_path)["services"]

    assert ["1m5s"] * 2 == [services[name]["stop_grace_period"] for name in ("gateway", "cloner")]
