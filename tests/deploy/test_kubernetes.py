"""deploy/kubernetes is what Kubernetes takes, fits together, and gives each process settings that it starts with."""

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

import environment
from cloner.backup.command import BackupSettings
from cloner.settings import Settings as OfCloner
from environment import Secret
from gateway.settings import Settings as OfGateway

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
PRECALL = KUBERNETES / "precall"
EXAMPLE = KUBERNETES / "overlays" / "example"
PROMETHEUS = KUBERNETES / "components" / "prometheus"
# The oldest that knows all that is used here as stable, and the newest whose schemas are installed.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
SETTINGS = {"gateway": OfGateway, "cloner": OfCloner, "migrations": BackupSettings}
PORTS = {"gateway": 3005, "cloner": 50051}
# What an operator keeps in the secrets that the pods mount.
KEPT = {
    ("precall-gateway", "webhook-secret"): "secret-of-the-webhook",
    ("precall-gateway", "conversation-init-token"): "token-of-the-initiation",
    ("precall-gateway", "cloner-token"): "token-of-the-cloner",
    ("precall-cloner", "cloner-token"): "token-of-the-cloner",
    ("precall-cloner", "elevenlabs-api-key"): "key-of-elevenlabs",
    ("precall-cloner", "caller-hash-key"): "key-of-the-hashes",
    ("precall-database", "url"): "postgresql://precall:p@db.internal/precall",
}

Object = dict[str, Any]


def loaded(file: Path) -> list[Object]:
    """The documents of a file."""
    return parsed(file.read_text())


def parsed(text: str) -> list[Object]:
    """The documents of a text; the parser in Python takes ten times as long."""
    # PyYAML 6.0.3 has the one in C for Python 3.11 to 3.14.
    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def resources(folder: Path) -> list[Object]:
    """What a kustomization and those that it builds on list, before anything is patched."""
    found = []
    for name in loaded(folder / "kustomization.yaml")[0].get("resources", ()):
        path = folder / name
        found += resources(path) if path.is_dir() else loaded(path)
    return found


def of_kind(kind: str) -> dict[str, Object]:
    """The objects of Precall that are of a kind, by name."""
    return {one["metadata"]["name"]: one for one in resources(PRECALL) if one["kind"] == kind}


def pods() -> dict[str, Object]:
    """The pods of Precall, by what runs in them."""
    owners = (*of_kind("Deployment").values(), *of_kind("Job").values())
    templates = [owner["spec"]["template"] for owner in owners]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in templates}


def container(pod: Object) -> Object:
    """The one container of a pod."""
    (only,) = pod["spec"]["containers"]
    return only


def chosen(selector: Object) -> list[str]:
    """The pods that a selector chooses."""
    wanted = selector.get("matchLabels", selector).items()
    return [name for name, pod in pods().items() if wanted <= pod["metadata"]["labels"].items()]


def maps(folder: Path) -> dict[str, dict[str, str]]:
    """The settings that a kustomization generates, by the map that holds them."""
    found = {}
    for one in loaded(folder / "kustomization.yaml")[0].get("configMapGenerator", ()):
        lines = list(one.get("literals", ()))
        for name in one.get("envs", ()):
            lines += (folder / name).read_text().splitlines()
        found[one["name"]] = dict(line.split("=", 1) for line in lines)
    return found


def environ_of(pod: Object, values: dict[str, dict[str, str]], folder: Path) -> dict[str, str]:
    """The environment that a container starts with; secrets lie where it mounts them, below the folder."""
    volumes = {one["name"]: one for one in pod["spec"].get("volumes", ())}
    for mount in container(pod).get("volumeMounts", ()):
        if secret := volumes[mount["name"]].get("secret"):
            place = folder / mount["mountPath"].lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            for (name, key), value in KEPT.items():
                if name == secret["secretName"]:
                    (place / key).write_text(value)
    environ: dict[str, str] = {}
    for source in container(pod).get("envFrom", ()):
        environ |= values[source["configMapRef"]["name"]]
    for variable in container(pod).get("env", ()):
        if source := variable.get("valueFrom"):
            environ[variable["name"]] = KEPT[source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]]
        else:
            environ[variable["name"]] = re.sub(r"^(?=/run/)", str(folder), variable["value"])
    return environ


def named(document: Any) -> Iterator[str]:
    """The variables that any part of a document sets."""
    if isinstance(document, dict):
        for one in document.get("env", ()):
            yield one["name"]
        if "configMapGenerator" in document:
            for one in document["configMapGenerator"]:
                yield from (line.split("=")[0] for line in one.get("literals", ()))
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            yield from named(part)


def test_every_file_is_used() -> None:
    """What lies in the folder is listed by a kustomization, and what is listed lies there."""
    used = set(KUBERNETES.glob("**/kustomization.yaml"))
    for file in list(used):
        (top,) = loaded(file)
        names = [*top.get("resources", ()), *(patch["path"] for patch in top.get("patches", ()))]
        names += [name for one in top.get("configMapGenerator", ()) for name in one.get("envs", ())]
        names += [f"{name}/kustomization.yaml" for name in top.get("components", ())]
        used |= {(file.parent / name).resolve() for name in names if not (file.parent / name).is_dir()}

    assert {file for file in KUBERNETES.glob("**/*") if file.is_file()} == used


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas(version: str) -> None:
    """Each object is what its schema says, and has no field that its schema does not know."""
    every = [*resources(EXAMPLE), *resources(PROMETHEUS)]

    assert len(every) > 10
    for one in every:
        kubernetes_validate.validate(one, version, strict=True)


def test_selectors() -> None:
    """What belongs to a kind of pod chooses that kind, and no other."""
    for name in ("gateway", "cloner"):
        full = f"precall-{name}"
        deployment = of_kind("Deployment")[full]
        scaler = of_kind("HorizontalPodAutoscaler")[full]["spec"]
        (spread,) = pods()[name]["spec"]["topologySpreadConstraints"]
        selectors = [
            deployment["spec"]["selector"], of_kind("Service")[full]["spec"]["selector"],
            of_kind("PodDisruptionBudget")[full]["spec"]["selector"], spread["labelSelector"],
        ]  # fmt: skip

        assert [[name]] * 4 == [chosen(selector) for selector in selectors]
        assert ("Deployment", full) == (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"])
        assert "replicas" not in deployment["spec"]
        assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    for name, policy in of_kind("NetworkPolicy").items():
        assert [name.removeprefix("precall-")] == chosen(policy["spec"]["podSelector"])
        assert ["Ingress", "Egress"] == policy["spec"]["policyTypes"]
    assert {f"precall-{name}" for name in pods()} == set(of_kind("NetworkPolicy"))
    for one in resources(PRECALL):
        assert {"app.kubernetes.io/name", "app.kubernetes.io/component"} == set(one["metadata"]["labels"])


def test_ports() -> None:
    """A process serves where its probes, its service and the policies say, and the gateway finds every cloner."""
    policies = of_kind("NetworkPolicy")
    for name, port in PORTS.items():
        (opened,) = container(pods()[name])["ports"]
        (served,) = of_kind("Service")[f"precall-{name}"]["spec"]["ports"]
        (entered,) = policies[f"precall-{name}"]["spec"]["ingress"]
        probes = [container(pods()[name])[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
        asked = {
            (probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc"))["port"] for probe in probes
        }
        own = {field.name: field.default for field in msgspec.structs.fields(SETTINGS[name])}

        assert own["precall_webhook_port" if name == "gateway" else "cloner_port"] == port
        assert (port, port, opened["name"]) == (opened["containerPort"], served["port"], served["targetPort"])
        assert [port] == [one["port"] for one in entered["ports"]]
        assert asked <= {port, opened["name"]}
    to_cloner = policies["precall-gateway"]["spec"]["egress"][0]
    from_gateway = policies["precall-cloner"]["spec"]["ingress"][0]["from"][0]
    assert (["cloner"], [50051]) == (
        chosen(to_cloner["to"][0]["podSelector"]), [one["port"] for one in to_cloner["ports"]],
    )  # fmt: skip
    assert ["gateway"] == chosen(from_gateway["podSelector"])
    assert [] == policies["precall-migrations"]["spec"].get("ingress", [])
    assert "None" == of_kind("Service")["precall-cloner"]["spec"]["clusterIP"]
    assert "dns:///precall-cloner:50051" == maps(PRECALL)["precall-gateway"]["CLONER_TARGET"]


def test_metrics() -> None:
    """With its component each process serves metrics as in docker-compose.yml, and a policy lets them be fetched."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (port,) = {
        int(target["port"])
        for job in parsed((ROOT / "deploy/observability/prometheus.yml").read_text())[0]["scrape_configs"]
        for target in job.get("dns_sd_configs", ())
    }
    policies = {one["metadata"]["name"]: one["spec"] for one in resources(PROMETHEUS)}
    for name in PORTS:
        (patch,) = loaded(PROMETHEUS / f"{name}.yaml")
        settings, policy = maps(PROMETHEUS)[f"precall-{name}"], policies[f"precall-{name}-metrics"]
        (entered,) = policy["ingress"]

        host = compose[name]["environment"]["OTEL_EXPORTER_PROMETHEUS_HOST"]
        assert {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": host} == settings
        assert [{"name": "metrics", "containerPort": port}] == container(patch["spec"]["template"])["ports"]
        assert ([name], [port]) == (chosen(policy["podSelector"]), [one["port"] for one in entered["ports"]])


def test_variables_exist() -> None:
    """Every variable that any file sets is one that its process, or OpenTelemetry, reads."""
    every = {
        field.name.upper(): field for kind in SETTINGS.values() for field in msgspec.structs.fields(kind)
    }
    set_here = {name for file in KUBERNETES.glob("**/*.yaml") for one in loaded(file) for name in named(one)}
    set_here |= {name for values in maps(PRECALL).values() for name in values}
    ours = {name.removesuffix("_FILE") for name in set_here if not name.startswith("OTEL_")}

    assert len(ours) > 10
    assert ours <= set(every)


@pytest.mark.parametrize("folder", [PRECALL, EXAMPLE], ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["gateway", "cloner", "migrations"])
def test_settings(folder: Path, name: str, tmp_path: Path) -> None:
    """With the secrets that it mounts a process takes its environment, and finds nothing odd in it."""
    values = maps(PRECALL)
    if folder != PRECALL:
        values = {one: values[one] | maps(folder).get(one, {}) for one in values}
    environ = environ_of(pods()[name], values, tmp_path)

    settings = environment.read(SETTINGS[name], environ)

    assert [] == list(environment.remarks(settings, environ))
    for field in msgspec.structs.fields(SETTINGS[name]):
        if f"{field.name.upper()}_FILE" in environ:
            value = getattr(settings, field.name)
            assert isinstance(value[0] if isinstance(value, tuple) else value, Secret)


def test_every_secret_is_used() -> None:
    """What docs/DEPLOYMENT.md tells to keep is what the pods mount."""
    text = (ROOT / "docs" / "DEPLOYMENT.md").read_text().replace("\\\n", " ")
    told = {
        (name, key)
        for name, rest in re.findall(r"kubectl create secret generic (\S+) (.*)", text)
        for key in re.findall(r"--from-file=secrets/([a-z-]+)", rest)
    }

    assert set(KEPT) == told


def test_time_to_stop() -> None:
    """A pod is killed later than its process may need: the pause, what is in flight, the last spans."""
    for name in PORTS:
        values = maps(PRECALL)[f"precall-{name}"]
        needed = float(values["DRAIN_SECONDS"]) + float(values["SHUTDOWN_GRACE_SECONDS"])
        needed += float(values["OTEL_BSP_EXPORT_TIMEOUT"]) / 1000

        assert needed < pods()[name]["spec"]["terminationGracePeriodSeconds"]


def test_nothing_may_be_done() -> None:
    """No pod is root, writes to its image, has a capability, or a key of the cluster's API."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, pod in pods().items():
        spec, security = pod["spec"], pod["spec"]["securityContext"]

        assert {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        } == container(pod)["securityContext"]  # fmt: skip
        assert (True, 10001, {"type": "RuntimeDefault"}) == (
            security["runAsNonRoot"], security["runAsUser"], security["seccompProfile"],
        )  # fmt: skip
        assert (False, False) == (spec["automountServiceAccountToken"], spec["enableServiceLinks"])
        if name in PORTS:
            assert "2g" == compose[name]["mem_limit"]
            assert "2Gi" == container(pod)["resources"]["limits"]["memory"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "USER 10001:10001" in dockerfile


async def test_build(left_out: Callable[[str], None]) -> None:
    """The example is built as it stands, all of it in its namespace, from the image that it names."""
    if kustomize := shutil.which("kustomize"):
        command = (kustomize, "build")
    elif kubectl := shutil.which("kubectl"):
        command = (kubectl, "kustomize")
    else:
        left_out("deploy/kubernetes is not built, for want of kustomize and kubectl")
        return
    process = await asyncio.create_subprocess_exec(
        *command, str(EXAMPLE), env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    built = parsed(out)

    assert (0, b"") == (process.returncode, err)
    assert {
        (one["kind"], one["metadata"]["name"]) for one in (*resources(EXAMPLE), *resources(PROMETHEUS))
    } == {(one["kind"], one["metadata"]["name"]) for one in built if one["kind"] != "ConfigMap"}
    parts = {one["metadata"].get("labels", {}).get("app.kubernetes.io/component") for one in built[1:]}
    assert ("Namespace", {"gateway", "cloner", "migrations"}) == (built[0]["kind"], parts)
    assert {"precall"} == {one["metadata"].get("namespace", "precall") for one in built}
    for one in built:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    settings = {one["metadata"]["name"]: one["data"] for one in built if one["kind"] == "ConfigMap"}
    for one in built:
        if one["kind"] in ("Deployment", "Job"):
            run = container(one["spec"]["template"])
            assert "registry.example.com/precall:0.1.0" == run["image"]
            assert {source["configMapRef"]["name"] for source in run.get("envFrom", ())} <= set(settings)
    (of_cloner,) = (data for name, data in settings.items() if name.startswith("precall-cloner-"))
    assert ("false", "0.0.0.0") == (of_cloner["CLONER_INSECURE"], of_cloner["CLONER_HOST"])
