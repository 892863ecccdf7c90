"""The chart keeps Kubernetes' rules, the product's, and its own promises."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cryptography import x509

from auditlog.witnesses import Policy
from contract.contexts import BY_NAME, CONTEXTS
from servicekit.observability.tracing import Traces
from servicekit.settings import ServiceSettings
from tests.helm.chart import (
    CERT_MANAGER,
    CHART,
    EVAL,
    EVERYTHING,
    GIVEN,
    PRODUCTION,
    VERSIONS,
    Object,
    containers,
    helm,
    pods,
    render,
    template,
)
from tools.chart_readme import readme

ROOT = CHART.parents[1]
PROFILES = {
    "eval": EVAL,
    "production": PRODUCTION,
    "everything": EVERYTHING,
    "cert-manager": CERT_MANAGER,
}
OPERATOR = "Deployment/ev-operator"
# It would read all definitions of a release for each object.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)
# These are no part of Kubernetes; their schemas come with what defines them.
OTHERS = {
    "ServiceMonitor",
    "PrometheusRule",
    "HTTPRoute",
    "TLSRoute",
    "BackendTLSPolicy",
    "Certificate",
    "Issuer",
}


@pytest.fixture(scope="module", params=PROFILES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(PROFILES[request.param])


def by_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_object_keeps_the_schema_of_kubernetes(profile: str, version: str) -> None:
    """Of the oldest release that is supported, of the newest, and of one between."""
    for found in render(PROFILES[profile], "--kube-version", f"{version}.0"):
        if found["kind"] not in OTHERS:
            kubernetes_validate.validate(found, version, strict=True)


def test_helm_has_nothing_to_complain_of() -> None:
    """`helm lint --strict`."""
    values = "publicUrl=https://a.example,generateSecrets=true"
    done = helm("lint", "--strict", str(CHART), "--set", values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notes_wait_as_the_documentation_does(tmp_path: Path) -> None:
    """For every Deployment of the release, as long as `--wait` in docs/install.md."""
    chart = Path(shutil.copytree(CHART, tmp_path / "chart"))
    notes = (chart / "templates" / "NOTES.txt").read_text()
    # `helm template` renders objects alone.
    (chart / "templates" / "notes.yaml").write_text(
        f'{{{{ define "notes" }}}}{notes}{{{{ end }}}}\nkind: ConfigMap\napiVersion: v1\n'
        'metadata: {name: notes}\ndata: {text: {{ include "notes" . | quote }}}\n'
    )
    given = ["--set", "publicUrl=https://a.example,generateSecrets=true"]
    words = ["template", "ev", str(chart), "--namespace", "fleet", *given]
    done = helm(*words, "--show-only", "templates/notes.yaml")
    assert done.returncode == 0, done.stderr
    text = yaml.safe_load(done.stdout)["data"]["text"]
    (patience,) = set(
        re.findall(r"--wait --timeout (\w+)", (ROOT / "docs" / "install.md").read_text())
    )
    waits = (
        "kubectl -n fleet rollout status deployment -l app.kubernetes.io/instance=ev"
        f" --timeout {patience}"
    )
    assert [line.strip() for line in text.splitlines() if "rollout" in line] == [waits]
    for name, found in by_kind(render(EVAL), "Deployment").items():
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "ev", name


def test_pods_are_restricted(objects: list[Object]) -> None:
    """Pod Security "restricted", a read-only root, no token, bounded memory, pinned images."""
    for name, pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False, name
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name
        for container in containers(pod):
            where = f"{name} {container['name']}"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where
            assert "memory" in container["resources"]["limits"], where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            tag = container["image"].rpartition(":")[2]
            assert tag not in {"", "latest"}, where


def test_what_runs_on_is_watched(objects: list[Object]) -> None:
    """Every container that serves has a startup, a liveness and a readiness probe."""
    for name, pod in pods(objects):
        if name.startswith(("Deployment", "StatefulSet")) and name != OPERATOR:
            for container in pod["containers"]:
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), name


def test_every_secret_that_is_mounted_is_there(objects: list[Object]) -> None:
    """Each with the keys that are taken from it; a pod gets no more than its own."""
    secrets = {
        name: set(s.get("stringData", s.get("data")))
        for name, s in by_kind(objects, "Secret").items()
    }
    by_cert_manager = {c["spec"]["secretName"] for c in by_kind(objects, "Certificate").values()}
    secrets |= {name: {"ca.crt", "tls.crt", "tls.key"} for name in by_cert_manager}
    for name, pod in pods(objects):
        for volume in pod["volumes"]:
            sources = [volume.get("secret")] if "secret" in volume else []
            projected = volume.get("projected", {}).get("sources", [])
            sources += [s["secret"] for s in projected if "secret" in s]
            for source in sources:
                secret = source.get("secretName", source.get("name"))
                if secret in {"database-ca", "nats-ca", "backup-keys", "ev-restore"}:
                    continue
                if source.get("optional") and secret not in secrets:
                    continue
                wanted = {item["key"] for item in source.get("items", [])}
                assert wanted <= secrets[secret], f"{name}: {secret}"
                if secret in {"ev-inside", "ev-database-services"}:
                    assert wanted, f"{name} gets the secrets of all"
    others = {"policy": "telemetry", "identity": "enrollment"}
    rendered = dict(pods(objects))
    for context, other in others.items():
        assert f"{other}.key" not in json.dumps(rendered[f"Deployment/ev-{context}"])


@pytest.mark.parametrize("profile", PROFILES)
def test_given_secrets_are_the_only_ones(profile: str) -> None:
    """With every secret given, the chart makes none."""
    objects = render({**PROFILES[profile], **GIVEN})
    assert by_kind(objects, "Secret") == {}
    mounted = json.dumps([pod for _, pod in pods(objects)])
    for secret in GIVEN.values():
        if profile == "everything" and secret == "s8":
            continue
        assert f'"{secret}"' in mounted, secret


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "publicUrl"),
        ({"publicUrl": "http://plain.example"}, "publicUrl"),
        ({**EVAL, "profile": "production"}, "external PostgreSQL"),
        ({**PRODUCTION, "gateway.replicas": "1"}, "gateway.replicas"),
        ({**PRODUCTION, "services.policy.replicas": "1"}, "services.policy.replicas"),
        ({**PRODUCTION, "nats.replicas": "1"}, "nats.replicas"),
        ({**EVAL, "database.bundled": "false"}, "database.host"),
        ({**EVAL, "nats.bundled": "false"}, "nats.url"),
        ({**EVAL, "nats.events.expose": "true"}, "nats.events.url"),
        ({**EVAL, "gateway.replica": "2"}, "replica"),
        ({**EVAL, "services.policies.replicas": "2"}, "policies"),
        ({**EVAL, "serviceDefaults.drainSeconds": "long"}, "drainSeconds"),
        ({**EVAL, "policies.secrets": "seal"}, "secrets"),
        ({**EVAL, "traces.endpoint": "collector:4317"}, "traces.endpoint"),
        ({**EVAL, "traces.ratio": "1.5"}, "traces.ratio"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, str], why: str) -> None:
    """By name, before anything is installed."""
    done = template(values)
    assert done.returncode != 0
    assert why in done.stderr


def test_production_survives_the_loss_of_a_node() -> None:
    """Two of everything, spread, one taken away at a time, and only the right peers let in."""
    objects = render(PRODUCTION)
    deployments = by_kind(objects, "Deployment")
    assert deployments.pop("ev-operator")["spec"]["replicas"] == 0
    assert set(deployments) == {f"ev-{name}" for name in (*CONTEXTS, "gateway")}
    budgets = by_kind(objects, "PodDisruptionBudget")
    scalers = by_kind(objects, "HorizontalPodAutoscaler")
    policies = by_kind(objects, "NetworkPolicy")
    for name, deployment in deployments.items():
        assert scalers[name]["spec"]["minReplicas"] >= 2
        assert "replicas" not in deployment["spec"]
        assert budgets[name]["spec"]["maxUnavailable"] == 1
        assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert policies[name]["spec"]["podSelector"] == deployment["spec"]["selector"]
    nats = by_kind(objects, "StatefulSet")["ev-nats"]
    assert nats["spec"]["replicas"] == 3
    services = by_kind(objects, "ConfigMap")["ev-services"]["data"]
    assert services["EVERGREEN_STREAM_REPLICAS"] == "3"


def test_migrations_come_first() -> None:
    """On install beside the services, which wait; on upgrade before them, rehearsed."""
    (job,) = by_kind(render(EVAL), "Job").values()
    assert "annotations" not in job["metadata"]
    job = by_kind(render(EVAL, "--is-upgrade"), "Job")["ev-migrate-1"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    steps = [c["args"] for c in containers(job["spec"]["template"]["spec"])]
    assert steps == [["database", "init"], ["migrate", "up", "--dry-run"], ["migrate", "up"]]


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """What a container's process finds in its environment."""
    maps = by_kind(objects, "ConfigMap")
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]["data"]
    for entry in container.get("env", []):
        is_amount = "resourceFieldRef" in entry.get("valueFrom", {})
        found[entry["name"]] = entry.get("value", str(1 << 30) if is_amount else "from the pod")
    return found


@pytest.mark.parametrize("context", CONTEXTS)
def test_services_take_their_settings(
    objects: list[Object], context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's own settings class reads the rendered environment."""
    pod = dict(pods(objects))[f"Deployment/ev-{context}"]
    (container,) = pod["containers"]
    for name in [name for name in os.environ if name.startswith("EVERGREEN_")]:
        monkeypatch.delenv(name)
    for name, value in environment(objects, container).items():
        monkeypatch.setenv(name, value)
    settings = ServiceSettings()
    assert settings.tls is not None
    assert settings.target("identity") == "dns:///ev-identity:9091"
    files = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (settings.tls.key_file, settings.database_password_file, settings.nats_ca_file):
        assert any(Path(mounted) in Path(str(path)).parents for mounted in files), path
    (secrets,) = (v["projected"] for v in pod["volumes"] if v["name"] == "secrets")
    mounted = {item["path"] for s in secrets["sources"] for item in s["secret"]["items"]}
    assert ("master_key" in mounted) is BY_NAME[context].seals
    ports = {port["containerPort"] for port in container["ports"]}
    listens = (settings.grpc_listen, settings.internal_listen, settings.ops_listen)
    for listen in (*listens, settings.health_listen):
        assert int(listen.rpartition(":")[2]) in ports


@pytest.mark.parametrize("how", ["open", "sealed"])
def test_the_policy_service_is_told_how_to_store_secrets(how: str) -> None:
    """It alone."""
    found = render({**EVAL, "policies.secrets": how})
    said = {
        name: environment(found, pod["containers"][0]).get("EVERGREEN_POLICY_SECRETS")
        for name, pod in pods(found)
        if name.startswith("Deployment/")
    }
    assert said.pop("Deployment/ev-policy") == how
    assert set(said.values()) == {None}


def test_the_audit_service_is_told_of_witnesses_and_who_sees_its_log() -> None:
    """The policy of witnesses is a file of its pod; without one there is none."""
    policy = "# whom we ask\nquorum none"
    told = {"audit.witnesses": policy, "audit.public": "true", "audit.checkpointMail[0]": "a@b.de"}
    found = render({**EVAL, **told})
    pod = dict(pods(found))["Deployment/ev-audit"]
    (container,) = pod["containers"]
    said = environment(found, container)
    assert (said["EVERGREEN_AUDIT_LOG_PUBLIC"], said["EVERGREEN_AUDIT_CHECKPOINT_MAIL"]) == (
        "true",
        "a@b.de",
    )
    file = Path(said["EVERGREEN_AUDIT_WITNESSES_FILE"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (volume,) = (v for v in pod["volumes"] if v["name"] == mounts[str(file.parent)])
    data = by_kind(found, "ConfigMap")[volume["configMap"]["name"]]["data"]
    assert Policy.read(data[file.name]).is_met(set())
    plain = render(EVAL)
    pod = dict(pods(plain))["Deployment/ev-audit"]
    assert "EVERGREEN_AUDIT_WITNESSES_FILE" not in environment(plain, pod["containers"][0])
    assert "ev-witnesses" not in by_kind(plain, "ConfigMap")


def evergreen(*arguments: str, environment: dict[str, str]) -> None:
    """Runs the command as a container does."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.entry", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gateway_is_configured_by_its_init_container(tmp_path: Path) -> None:
    """With the hosts of the chart's services, and the certificates where they are mounted."""
    objects = render(EVAL)
    pod = dict(pods(objects))["Deployment/ev-gateway"]
    (configure,) = pod["initContainers"]
    command, verb, directory, *rest = configure["args"]
    evergreen(command, verb, str(tmp_path), *rest, environment=environment(objects, configure))
    assert directory == "/etc/envoy"
    written = "".join(file.read_text(errors="replace") for file in tmp_path.glob("*.yaml"))
    for context in CONTEXTS:
        assert f"ev-{context}" in written
    assert "/etc/evergreen/certificate/tls.key" in written
    assert "/run/evergreen/tls.key" in written
    # Envoy's memory is that of its own container, not of the one that renders.
    assert f"max_heap_size_bytes: {int(0.8 * (1 << 30))}" in written
    (envoy,) = pod["containers"]
    assert envoy["args"][1] == "/etc/envoy/bootstrap.yaml"
    assert (tmp_path / "bootstrap.yaml").is_file()


def test_the_console_is_under_the_public_address(tmp_path: Path) -> None:
    """The gateway passes its pages on, and identity knows where people go after a login."""
    objects = render({**EVAL, "gateway.consoleUrl": "http://console:3000"})
    found = dict(pods(objects))
    (container,) = found["Deployment/ev-identity"]["containers"]
    told = environment(objects, container)
    assert told["EVERGREEN_PUBLIC_URL"] == EVAL["publicUrl"]
    assert told["EVERGREEN_CONSOLE_URL"] == "http://console:3000"
    (configure,) = found["Deployment/ev-gateway"]["initContainers"]
    command, verb, _, *rest = configure["args"]
    evergreen(command, verb, str(tmp_path), *rest, environment=environment(objects, configure))
    assert "address: console" in (tmp_path / "clusters.yaml").read_text()


def test_traces_go_where_the_values_say(tmp_path: Path) -> None:
    """From the gateway and from every service; without a collector nobody hears of traces."""
    assert "OTEL_" not in template(EVAL).stdout
    objects = render({**EVAL, "traces.endpoint": "http://collector:4317", "traces.ratio": "0.25"})
    found = dict(pods(objects))
    for context in CONTEXTS:
        (container,) = found[f"Deployment/ev-{context}"]["containers"]
        traces = Traces.of_environment(environment(objects, container))
        assert traces == Traces("collector", 4317, tls=False, ratio=0.25)
    (configure,) = found["Deployment/ev-gateway"]["initContainers"]
    command, verb, _, *rest = configure["args"]
    evergreen(command, verb, str(tmp_path), *rest, environment=environment(objects, configure))
    assert "address: collector" in (tmp_path / "clusters.yaml").read_text()
    assert "value: 25.0" in (tmp_path / "listener.yaml").read_text()


def test_nats_is_configured_by_its_init_container(tmp_path: Path) -> None:
    """Three servers that know each other, with the services' passwords."""
    objects = render(PRODUCTION)
    pod = dict(pods(objects))["StatefulSet/ev-nats"]
    passwords: Any = by_kind(objects, "Secret")["ev-nats"]["stringData"]
    for context, password in passwords.items():
        (tmp_path / context).write_text(password)
    file = tmp_path / "nats.conf"
    (configure,) = pod["initContainers"]
    arguments = [str(file) if word == "/etc/nats/nats.conf" else word for word in configure["args"]]
    arguments = [
        f"--passwords={tmp_path}" if word.startswith("--passwords=") else word for word in arguments
    ]
    evergreen(*arguments, environment={"NATS_SERVER_NAME": "ev-nats-0"})
    written = json.loads(file.read_text())
    assert written["server_name"] == "ev-nats-0"
    assert len(written["cluster"]["routes"]) == 3
    accounts = written["accounts"].values()
    users = {u["user"]: u["password"] for account in accounts for u in account.get("users", ())}
    assert users == {name: text for name, text in passwords.items() if name != "issuer"}
    assert written["authorization"]["auth_callout"]["issuer"].startswith("A")


def test_the_certificate_of_nats_is_good_for_whoever_connects() -> None:
    """The services and each other's servers inside, integrators outside."""
    told = {"nats.events.expose": "true", "nats.events.url": "tls://events.example.org:4222"}
    objects = render({**PRODUCTION, **told})
    made = by_kind(objects, "Secret")["ev-inside"]["stringData"]["nats.crt"]
    certificate = x509.load_pem_x509_certificate(made.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    covered = set(names.get_values_for_type(x509.DNSName))
    assert {"events.example.org", "*.ev-nats.fleet.svc", "ev-nats"} <= covered
    services = by_kind(objects, "ConfigMap")["ev-services"]["data"]
    servers = services["EVERGREEN_NATS_URL"].split(",")
    assert servers == [f"tls://ev-nats-{number}.ev-nats.fleet.svc:4222" for number in range(3)]
    service = by_kind(objects, "Service")["ev-events"]["spec"]
    pod = by_kind(objects, "StatefulSet")["ev-nats"]["spec"]["template"]["metadata"]
    assert service["selector"].items() <= pod["labels"].items()
    policy = by_kind(objects, "NetworkPolicy")["ev-nats"]["spec"]
    assert {"ports": [{"port": "nats", "protocol": "TCP"}]} in policy["ingress"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"image.tag": "0.2.0"}, ["serve"]),
        ({"image.tag": "main"}, ["serve"]),
        ({"image.digest": "sha256:" + "0" * 64}, ["serve"]),
        ({"image.tag": "0.1.0"}, []),
        ({"image.tag": "v0.1.3", "image.digest": "sha256:" + "0" * 64}, []),
    ],
)
def test_an_image_of_another_release_is_started_with_words_it_knows(
    image: dict[str, str], words: list[str]
) -> None:
    """A new chart with a pinned image of 0.1, as in an upgrade in two steps, starts it."""
    deployments = by_kind(render(EVAL | image), "Deployment")
    for context in CONTEXTS:
        (service,) = deployments[f"ev-{context}"]["spec"]["template"]["spec"]["containers"]
        assert service["args"] == [*words, context]


def test_helm_test_enrolls_a_device() -> None:
    """By the simulator, whose options it knows; the secret stays out of the arguments."""
    pod = dict(pods(render(EVAL)))["Pod/ev-test-enroll"]
    (container,) = pod["containers"]
    program, command, *arguments = container["args"]
    assert (program, command) == ("evergreen", "sim")
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    shown = subprocess.run(
        [sys.executable, "-m", "cli.entry", "sim", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(option in shown for option in options), options
    assert {"SECRET", "EVERGREEN_PRE_SHARED_KEY"} < {entry["name"] for entry in container["env"]}
    assert pod["restartPolicy"] == "Never"
    (test,) = by_kind(render(EVAL), "Pod").values()
    # Its log is there until the next run.
    assert test["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation"


@pytest.mark.parametrize("code", [0, 3])
def test_helm_test_ends_its_devices_whatever_becomes_of_it(tmp_path: Path, code: int) -> None:
    """Before, for a run that was cut short, and afterwards. It is tried some times; its own outcome
    counts.
    """
    calls = tmp_path / "calls"
    program = tmp_path / "evergreen"
    program.write_text(
        f'#!/bin/sh\necho "$1 $2 $3" >> {calls}\nif [ "$1" = sim ]; then exit {code}; fi\n'
    )
    program.chmod(0o755)
    (tmp_path / "sleep").symlink_to("/usr/bin/true")
    (container,) = dict(pods(render(EVAL)))["Pod/ev-test-enroll"]["containers"]
    told = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PREFIX": told["PREFIX"]},
        check=False,
    )
    assert done.returncode == code
    end = f"devices end-simulated {told['PREFIX']}"
    assert [line[: len(end)] for line in calls.read_text().splitlines()] == [
        end,
        *["sim --url https://ev-gateway:443"[: len(end)]] * (5 if code else 1),
        end,
    ]


def test_two_evaluations_fit_on_two_processors() -> None:
    """With what a cluster has of its own, and while one of them is upgraded."""
    requested = surge = 0
    for name, pod in pods(render(EVAL)):
        if not name.startswith(("Deployment", "StatefulSet")) or name == OPERATOR:
            continue
        cpu = sum(_millis(c["resources"]["requests"]["cpu"]) for c in pod["containers"])
        first = [_millis(c["resources"]["requests"]["cpu"]) for c in pod.get("initContainers", [])]
        requested += max([cpu, *first])
        surge += cpu if name.startswith("Deployment") else 0
    assert 2 * requested + surge <= 1500
    production = dict(pods(render(PRODUCTION)))
    (service,) = production["Deployment/ev-policy"]["containers"]
    assert service["resources"]["requests"]["cpu"] == "100m"


def _millis(amount: str) -> int:
    return int(amount.removesuffix("m")) if amount.endswith("m") else 1000 * int(amount)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"metrics.serviceMonitor.enabled": "true"}, "ServiceMonitor"),
        ({"metrics.prometheusRule.enabled": "true"}, "PrometheusRule"),
        ({"certManager.enabled": "true"}, "Certificate"),
        (
            {"gateway.httpRoute.enabled": "true", "gateway.httpRoute.parentRefs[0].name": "a"},
            "HTTPRoute",
        ),
        (
            {"gateway.tlsRoute.enabled": "true", "gateway.tlsRoute.parentRefs[0].name": "a"},
            "TLSRoute",
        ),
    ],
)
def test_kinds_that_the_cluster_does_not_have_are_refused(
    values: dict[str, str], kind: str
) -> None:
    """With the value that asks for them, and what to install."""
    done = template(EVAL | values, added=())
    assert done.returncode != 0
    assert f"{next(iter(values))}: the cluster has no" in done.stderr
    assert f"/{kind}. Install" in done.stderr


def test_another_image_or_setting_is_another_pod() -> None:
    """A rollout is decided by a pod's template: it has what its configuration is made of."""
    digest = "sha256:" + "1" * 64
    before, after = render(EVAL), render({**EVAL, "image.digest": digest})
    for kind, name in (
        ("Deployment", "ev-policy"),
        ("Deployment", "ev-gateway"),
        ("StatefulSet", "ev-nats"),
    ):
        (old, new) = (
            by_kind(objects, kind)[name]["spec"]["template"] for objects in (before, after)
        )
        assert old["metadata"]["annotations"] != new["metadata"]["annotations"], name
        assert digest in new["metadata"]["annotations"]["evergreen.io/image"]
    moved = render({**EVAL, "publicUrl": "https://other.example.org"})
    for name in ("ev-identity", "ev-gateway"):
        old, new = (by_kind(objects, "Deployment")[name]["spec"] for objects in (before, moved))
        assert old["template"] != new["template"], name


def test_the_alerts_are_the_products() -> None:
    """The chart carries a copy, for it cannot reach out of its directory."""
    ours = (ROOT / "deploy/prometheus/rules/evergreen.yaml").read_text()
    assert (CHART / "files/alerts.yaml").read_text() == ours
    (rule,) = by_kind(render(EVERYTHING), "PrometheusRule").values()
    assert rule["spec"]["groups"]


def test_the_readme_describes_the_values() -> None:
    """`make gen` has made it from the schema that stands beside it."""
    assert (CHART / "README.md").read_text() == readme()
