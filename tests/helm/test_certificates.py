"""Who makes and renews a release's certificates: the chart's own job, or cert-manager."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from cryptography import x509

from contract.contexts import CONTEXTS
from deploy import nats
from deploy.certificates import Authority, issued_by
from servicekit.security.tls import Tls
from tests.helm.chart import CERT_MANAGER, CHART, EVAL, PRODUCTION, Object, pods, render, secrets_of
from tests.support.mounted import Mounted
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, free_port, until

BACKUPS = {"backup.enabled": "true", "backup.existingSecret": "backup-keys"}
PARTIES = (*CONTEXTS, "gateway", "postgres", "nats")
_SCHEMAS = json.loads((Path(__file__).parent / "cert_manager_schemas.json").read_text())


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def certificates_of(values: dict[str, str]) -> dict[str, dict[str, str]]:
    """The Secrets with certificates that a first installation makes, as text."""
    return {
        name: {key: text.decode() for key, text in files.items()}
        for name, files in secrets_of(render(values)).items()
        if name in {"ev-ca", "ev-inside", "ev-gateway-tls"}
    }


def test_both_cas_keep_their_keys_where_no_other_pod_sees_them() -> None:
    """In a Secret of their own, which the job reads; a backup takes the gateway's along."""
    made = certificates_of(EVAL)
    assert set(made["ev-ca"]) == {"gateway.crt", "gateway.key", "inside.crt", "inside.key"}
    assert set(made["ev-inside"]) == {"ca.crt"} | {
        f"{p}.{e}" for p in PARTIES for e in ("crt", "key")
    }
    for party in PARTIES:
        assert issued_by(made["ev-inside"][f"{party}.crt"], made["ev-ca"]["inside.crt"]), party
    assert issued_by(made["ev-gateway-tls"]["tls.crt"], made["ev-ca"]["gateway.crt"])
    assert made["ev-gateway-tls"]["ca.crt"].strip() == made["ev-ca"]["gateway.crt"].strip()
    mounted = {}
    for name, pod in pods(render({**EVAL, **BACKUPS})):
        sources = [s for volume in pod["volumes"] for s in _secrets_in(volume)]
        if items := [s.get("items") for s in sources if s["name"] == "ev-ca"]:
            mounted[name] = items
    for_a_backup = [[{"key": "gateway.key", "path": "ca.key"}]]
    assert mounted == dict.fromkeys(
        ("Deployment/ev-operator", "CronJob/ev-backup", "CronJob/ev-restore"), for_a_backup
    )


def _secrets_in(volume: Object) -> list[Object]:
    """The Secrets that a volume is made of."""
    if "secret" in volume:
        return [volume["secret"] | {"name": volume["secret"]["secretName"]}]
    sources = volume.get("projected", {}).get("sources", [])
    return [source["secret"] for source in sources if "secret" in source]


def test_each_certificate_has_the_names_of_its_own_party() -> None:
    """One that leaks is good for that party, and for nothing that devices or integrators reach."""
    events = {"nats.events.expose": "true", "nats.events.url": "tls://events.example.org:4222"}
    made = certificates_of({**PRODUCTION, **events})["ev-inside"]
    for party in PARTIES:
        certificate = x509.load_pem_x509_certificate(made[f"{party}.crt"].encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        expected = {party, f"ev-{party}", f"ev-{party}.fleet.svc"}
        if party == "nats":
            expected |= {"*.ev-nats.fleet.svc", "events.example.org"}
        assert set(names.get_values_for_type(x509.DNSName)) == expected


def test_what_is_made_once_is_no_part_of_the_release() -> None:
    """Helm makes it by a hook, if it is missing; else a rollback would bring outdated ones back."""
    for name in ("ev-ca", "ev-inside", "ev-gateway-tls"):
        notes = named(render(EVAL), "Secret")[name]["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert notes["helm.sh/resource-policy"] == "keep"
        # The default, which deletes what is there before it is made anew, is harmless: a Secret
        # that is there is not rendered (tests/kubernetes shows that).
        assert "helm.sh/hook-delete-policy" not in notes


def test_the_job_may_touch_these_secrets_and_nothing_else() -> None:
    """No other pod but a restore's (test_backup.py) has an account that may anything."""
    objects = render(EVAL)
    assert set(named(objects, "Role")) == {"ev-certificates", "ev-restore"}
    role = named(objects, "Role")["ev-certificates"]
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "verbs": ["get", "update"],
            "resourceNames": ["ev-ca", "ev-gateway-tls", "ev-inside"],
        }
    ]
    assert set(named(objects, "RoleBinding")) == {"ev-certificates", "ev-restore"}
    binding = named(objects, "RoleBinding")["ev-certificates"]
    assert [who["name"] for who in binding["subjects"]] == ["ev-certificates"]
    users = {name for name, pod in pods(objects) if pod["serviceAccountName"] == "ev-certificates"}
    assert users == {"CronJob/ev-certificates"}
    tokens = {name for name, pod in pods(objects) if "serviceAccountToken" in json.dumps(pod)}
    assert tokens == users | {"CronJob/ev-restore"}


@pytest.mark.parametrize(
    ("given", "renewed"),
    [
        ({}, {"--gateway", "--inside"}),
        ({"gateway.tls.existingSecret": "own"}, {"--inside"}),
        ({"insideTls.existingSecret": "own"}, {"--gateway"}),
    ],
)
def test_what_is_given_is_not_renewed(given: dict[str, str], renewed: set[str]) -> None:
    """Whoever gives a certificate renews it; the rest is renewed, at an upgrade too."""
    objects = render({**EVAL, **given}, "--is-upgrade")
    cron = named(objects, "CronJob")["ev-certificates"]
    spec = cron["spec"]["jobTemplate"]["spec"]
    job = named(objects, "Job")["ev-certificates-1"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-upgrade,post-rollback"
    assert job["spec"] == spec
    (container,) = spec["template"]["spec"]["containers"]
    words = {word.partition("=")[0] for word in container["args"]}
    assert words & {"--gateway", "--inside"} == renewed
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


def test_with_everything_given_there_is_no_job() -> None:
    """And no account but a restore's."""
    given = {"gateway.tls.existingSecret": "own", "insideTls.existingSecret": "other"}
    objects = render({**EVAL, **given}, "--is-upgrade")
    assert set(named(objects, "CronJob")) == set(named(objects, "Role")) == {"ev-restore"}
    assert set(named(objects, "Job")) == {"ev-migrate-1"}
    assert set(named(objects, "ServiceAccount")) == {"ev", "ev-restore"}


def test_cert_manager_takes_the_objects() -> None:
    """They keep the schemas of its own definitions, in which nothing unknown is allowed."""
    for values in (CERT_MANAGER, {**CERT_MANAGER, "certManager.issuerRef.name": "letsencrypt"}):
        objects = render(values)
        found = [one for one in objects if one["kind"] in _SCHEMAS["kinds"]]
        assert found
        for one in found:
            jsonschema.validate(one, _SCHEMAS["kinds"][one["kind"]])
        with pytest.raises(jsonschema.ValidationError):
            broken = {**found[0], "spec": {**found[0]["spec"], "unknown": 1}}
            jsonschema.validate(broken, _SCHEMAS["kinds"][found[0]["kind"]])


def test_cert_manager_makes_what_the_pods_mount() -> None:
    """A Certificate for each party, of one CA; the chart makes none, and has no job."""
    objects = render(CERT_MANAGER)
    certificates = {
        one["spec"]["secretName"]: one["spec"] for one in named(objects, "Certificate").values()
    }
    assert {f"ev-inside-{party}" for party in PARTIES} < set(certificates)
    for party in PARTIES:
        spec = certificates[f"ev-inside-{party}"]
        assert party in spec["dnsNames"]
        assert spec["issuerRef"]["name"] == "ev-inside"
        assert {"server auth", "client auth"} <= set(spec["usages"])
    assert "events.example.org" in certificates["ev-inside-nats"]["dnsNames"]
    assert certificates["ev-gateway-tls"]["dnsNames"] == [
        "evergreen.example.org",
        "ev-gateway",
        "ev-gateway.fleet.svc",
    ]
    for ca in ("ev-inside-ca", "ev-gateway-ca"):
        assert certificates[ca]["isCA"] is True
        # Who trusts it goes on trusting it when it is renewed.
        assert certificates[ca]["privateKey"]["rotationPolicy"] == "Never"
    made = set(named(objects, "Secret"))
    assert not made & {"ev-ca", "ev-inside", "ev-gateway-tls"}
    assert set(named(objects, "CronJob")) == {"ev-restore"}


def test_an_issuer_of_the_clusters_signs_the_gateways_certificate() -> None:
    """For the public name alone, which is all that it can prove; devices need no CA from us."""
    issuer = {
        "certManager.issuerRef.name": "letsencrypt",
        "certManager.issuerRef.kind": "ClusterIssuer",
    }
    objects = render({**CERT_MANAGER, **issuer})
    spec = named(objects, "Certificate")["ev-gateway"]["spec"]
    assert spec["dnsNames"] == ["evergreen.example.org"]
    assert spec["issuerRef"] == {
        "name": "letsencrypt",
        "kind": "ClusterIssuer",
        "group": "cert-manager.io",
    }
    assert "ev-gateway-ca" not in named(objects, "Certificate")
    (test,) = named(objects, "Pod").values()
    assert "https://evergreen.example.org" in test["spec"]["containers"][0]["args"]
    assert "--ca-file" not in test["spec"]["containers"][0]["args"]


def test_the_chart_has_the_products_script() -> None:
    """It cannot reach out of its directory."""
    ours = (ROOT / "deploy/containers/reloaded.sh").read_text()
    assert (CHART / "files/reloaded.sh").read_text() == ours
    # In a container's command Kubernetes makes one of two.
    assert "$$" not in ours


def _shown(port: int) -> int:
    """The serial number of the certificate that NATS shows after its greeting in the clear."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        plain.recv(4096)
        with context.wrap_socket(plain) as connection:
            shown = connection.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_nats_takes_over_a_new_certificate_without_a_restart(tmp_path: Path) -> None:
    """By the words of its container, when its volume changes as kubelet changes it."""
    authority = Authority.ensure_in(tmp_path / "ca")

    def made(name: str) -> dict[str, bytes]:
        directory = tmp_path / name
        directory.mkdir()
        authority.ensure(directory, "nats")
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    first, second = made("first"), made("second")
    volume = Mounted(tmp_path / "volume")
    volume.put(first)
    port = free_port()
    where = [volume.path / name for name in ("ca.crt", "tls.crt", "tls.key")]
    configuration = tmp_path / "nats.conf"
    configuration.write_text(
        nats.render(port, free_port(), tmp_path / "store", {"audit": "x"}, tls=Tls(*where))
    )
    (container,) = dict(pods(render(EVAL)))["StatefulSet/ev-nats"]["containers"]
    words = [*container["command"], *container["args"]]
    words[-1] = str(configuration)
    process = subprocess.Popen(
        words,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "CERTIFICATES": str(volume.path),
            "RELOAD_SECONDS": "0.1",
        },
        stderr=subprocess.DEVNULL,
    )
    serials = [
        x509.load_pem_x509_certificate(files["tls.crt"]).serial_number for files in (first, second)
    ]

    def shows(serial: int) -> bool:
        try:
            return _shown(port) == serial
        except OSError:
            return False

    try:
        until(lambda: shows(serials[0]), PATIENCE, "NATS does not start")
        volume.put(second)
        until(lambda: shows(serials[1]), PATIENCE, "NATS shows its old certificate")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(PATIENCE)
