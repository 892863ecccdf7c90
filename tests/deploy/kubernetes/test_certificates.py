"""A release's certificates are renewed in time, whatever happens to the runs that do it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from deploy.certificates import INSIDE, SERVER, Authority, Kind, issued_by, now
from deploy.kubernetes import certificates
from deploy.kubernetes.api import Api, KubernetesError
from deploy.kubernetes.certificates import Step, Wanted
from tests.fakes.kubernetes import FakeKubernetes, kubernetes
from tests.helm.chart import EVAL
from tests.helm.test_certificates import certificates_of

HOSTS = ["evergreen.example.org", "ev-gateway", "ev-gateway.fleet.svc"]
PARTIES = {
    "policy": ["policy", "ev-policy", "ev-policy.fleet.svc"],
    "nats": ["nats", "ev-nats", "ev-nats.fleet.svc", "*.ev-nats.fleet.svc"],
}
WANTED = Wanted(
    authorities="ev-ca",
    gateway="ev-gateway-tls",
    gateway_hosts=HOSTS,
    inside="ev-inside",
    inside_hosts=PARTIES,
)
MINUTES = timedelta(minutes=3)


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    """With what the chart made at the first installation."""
    with kubernetes() as fake:
        for name, made in certificates_of(EVAL).items():
            put(fake, name, made)
        yield fake


def renew(cluster: FakeKubernetes, wanted: Wanted = WANTED) -> list[str]:
    # A run that ends is as one that is killed.
    api = replace(Api.of_pod(cluster.environment, cluster.account), attempts=1)
    return certificates.renew(api, wanted)


def lives(life: timedelta, wanted: Wanted = WANTED) -> Wanted:
    """With certificates that live for so long."""
    return replace(
        wanted,
        gateway_kind=replace(SERVER, life=life),
        inside_kind=replace(INSIDE, life=life),
    )


def put(cluster: FakeKubernetes, name: str, made: Mapping[str, str]) -> None:
    cluster.secret(name, **{key: text.encode() for key, text in made.items()})


def files_of(cluster: FakeKubernetes, name: str) -> dict[str, str]:
    return {key: value.decode() for key, value in cluster.data(name).items()}


def certificate(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


def same_key(certificate_text: str, key_text: str) -> bool:
    key = serialization.load_pem_private_key(key_text.encode(), None)
    return certificate(certificate_text).public_key() == key.public_key()


def test_what_the_chart_made_is_good_for_years(cluster: FakeKubernetes) -> None:
    """The job changes nothing that is not due, however often it runs."""
    for _ in range(3):
        assert renew(cluster) == []
    assert cluster.writes == []


def test_a_certificate_is_renewed_by_the_ca_that_is_kept(cluster: FakeKubernetes) -> None:
    """When two thirds of its life are over, or it lives longer than it should; once."""
    before = {name: files_of(cluster, name) for name in ("ev-ca", "ev-gateway-tls", "ev-inside")}
    done = renew(cluster, lives(MINUTES))
    assert "gateway: certificate of tls renewed" in done
    assert "inside: certificate of policy renewed" in done
    assert files_of(cluster, "ev-ca") == before["ev-ca"]
    after = files_of(cluster, "ev-gateway-tls")
    assert after["ca.crt"] == before["ev-ca"]["gateway.crt"]
    assert issued_by(after["tls.crt"], after["ca.crt"])
    assert same_key(after["tls.crt"], after["tls.key"])
    ends = certificate(after["tls.crt"]).not_valid_after_utc
    assert now() < ends <= now() + MINUTES
    inside = files_of(cluster, "ev-inside")
    for party, hosts in PARTIES.items():
        assert issued_by(inside[f"{party}.crt"], inside["ca.crt"])
        assert same_key(inside[f"{party}.crt"], inside[f"{party}.key"])
        names = certificate(inside[f"{party}.crt"]).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        assert names.value.get_values_for_type(x509.DNSName) == hosts
    # Not asked for, and untouched.
    assert inside["audit.crt"] == before["ev-inside"]["audit.crt"]
    cluster.writes.clear()
    assert renew(cluster, lives(MINUTES)) == []
    assert cluster.writes == []


def test_short_lives_are_renewed_again_and_again(cluster: FakeKubernetes) -> None:
    """At two thirds, so that one is never shown that has ended."""
    life = timedelta(seconds=6)
    renew(cluster, lives(life))
    first = certificate(files_of(cluster, "ev-gateway-tls")["tls.crt"])
    due = (
        first.not_valid_before_utc
        + (first.not_valid_after_utc - first.not_valid_before_utc) * 2 / 3
    )
    assert due < first.not_valid_after_utc
    while (left := (due - datetime.now(UTC)).total_seconds()) > -1:
        time.sleep(max(left + 1, 0.1))
    assert "gateway: certificate of tls renewed" in renew(cluster, lives(life))
    assert (
        certificate(files_of(cluster, "ev-gateway-tls")["tls.crt"]).serial_number
        != first.serial_number
    )


def test_another_address_is_covered(cluster: FakeKubernetes) -> None:
    """After an upgrade that changes publicUrl, by the same CA."""
    moved = replace(WANTED, gateway_hosts=["other.example.org", *HOSTS[1:]])
    assert renew(cluster, moved) == ["gateway: certificate of tls renewed"]
    assert cluster.writes == ["PUT secrets/ev-gateway-tls"]


def test_a_run_that_is_killed_leaves_something_to_go_on_from(cluster: FakeKubernetes) -> None:
    """Before or between the Secrets: what is there fits together, and the next run ends it."""
    for number in range(3):
        wanted = replace(lives(MINUTES * (number + 1)), gateway_ca="begin", inside_ca="begin")
        left = number

        def die(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("killed")

        cluster.before_write = die
        with pytest.raises(KubernetesError):
            renew(cluster, wanted)
        for name in ("ev-gateway-tls", "ev-inside"):
            files = files_of(cluster, name)
            for party in ("tls",) if name == "ev-gateway-tls" else PARTIES:
                assert issued_by(files[f"{party}.crt"], files["ca.crt"])
                assert same_key(files[f"{party}.crt"], files[f"{party}.key"])
        cluster.before_write = lambda _: None
        renew(cluster, wanted)
        assert renew(cluster, wanted) == []
        for step in ("switch", "end"):
            renew(cluster, replace(wanted, gateway_ca=step, inside_ca=step))  # type: ignore[arg-type]


def test_two_runs_at_once_do_not_undo_each_other(cluster: FakeKubernetes) -> None:
    """The second one sees what the first one did, and has nothing left to do."""
    wanted = lives(MINUTES)

    def meanwhile(_: str) -> None:
        cluster.before_write = lambda _: None
        renew(cluster, wanted)

    cluster.before_write = meanwhile
    assert renew(cluster, wanted) == []
    assert sorted(cluster.writes) == ["PUT secrets/ev-gateway-tls", "PUT secrets/ev-inside"]


def test_what_is_refused_is_said(cluster: FakeKubernetes) -> None:
    """A Secret that is missing, and one that the account may not see."""
    with pytest.raises(KubernetesError, match="ev-nothing is missing"):
        renew(cluster, replace(WANTED, inside="ev-nothing"))
    cluster.allowed = lambda what: what != "secrets/ev-inside"
    with pytest.raises(KubernetesError, match=r"refuses .*ev-inside \(403\): .*forbidden"):
        renew(cluster)


@pytest.mark.parametrize("which", ["gateway", "inside"])
def test_a_ca_is_replaced_without_a_moment_in_which_it_is_not_trusted(
    cluster: FakeKubernetes, which: str
) -> None:
    """Begin, switch, end: each does its work once, however often it is said."""
    secret, party = ("ev-gateway-tls", "tls") if which == "gateway" else ("ev-inside", "nats")
    old = files_of(cluster, "ev-ca")[f"{which}.crt"]

    def step(name: Step) -> list[str]:
        return renew(cluster, replace(WANTED, **{f"{which}_ca": name}))

    assert step("switch") == step("end") == []
    assert step("begin") == [f"{which}: the next CA is made, and trusted beside the old one"]
    assert step("begin") == []
    files = files_of(cluster, secret)
    assert len(x509.load_pem_x509_certificates(files["ca.crt"].encode())) == 2
    assert issued_by(files[f"{party}.crt"], old)
    assert step("end") == []  # not before the next one signs
    assert step("switch")[0].startswith(f"{which}: the next CA signs from now on")
    assert step("switch") == []
    files = files_of(cluster, secret)
    assert not issued_by(files[f"{party}.crt"], old)
    assert issued_by(files[f"{party}.crt"], files["ca.crt"])
    assert old.strip() in files["ca.crt"]
    assert step("end") == [f"{which}: the old CA is not trusted any more"]
    files = files_of(cluster, secret)
    assert old.strip() not in files["ca.crt"]
    assert issued_by(files[f"{party}.crt"], files["ca.crt"])
    kept = files_of(cluster, "ev-ca")
    assert same_key(kept[f"{which}.crt"], kept[f"{which}.key"])
    assert f"{which}-next.key" not in kept
    assert renew(cluster) == []


def _of_another_ca(directory: Path, life: timedelta) -> dict[str, str]:
    """A gateway's Secret of a CA whose key is not known here."""
    authority = Authority.ensure_in(directory / "other", "Another CA")
    files = directory / "tls.crt", directory / "tls.key"
    authority.ensure_files(*files, HOSTS, Kind("x", life), now())
    return {
        "ca.crt": authority.certificate_file.read_text(),
        "tls.crt": files[0].read_text(),
        "tls.key": files[1].read_text(),
    }


def test_devices_keep_a_certificate_whose_cas_key_is_lost(
    cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """One of a restored backup, or of 0.1.0: our CA is told beside it, and signs in its last week.

    Until then, devices that trust the old CA alone can connect; the job says each time what to do.
    """
    theirs = _of_another_ca(tmp_path, timedelta(days=100))
    put(cluster, "ev-gateway-tls", theirs)
    ours = files_of(cluster, "ev-ca")["gateway.crt"]
    (said,) = renew(cluster)
    assert "give it to each device that trusts the old CA before" in said
    files = files_of(cluster, "ev-gateway-tls")
    assert (files["tls.crt"], files["tls.key"]) == (theirs["tls.crt"], theirs["tls.key"])
    assert theirs["ca.crt"].strip() in files["ca.crt"]
    assert ours.strip() in files["ca.crt"]
    assert renew(cluster) == [said]
    # An administrator who has told all devices need not wait.
    done = renew(cluster, replace(WANTED, gateway_ca="switch"))
    assert "gateway: certificate of tls renewed" in done
    files = files_of(cluster, "ev-gateway-tls")
    assert issued_by(files["tls.crt"], ours)
    assert theirs["ca.crt"].strip() in files["ca.crt"]


def test_in_its_last_week_such_a_certificate_is_replaced(
    cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """It would end in any case; devices that were told our CA go on."""
    put(cluster, "ev-gateway-tls", _of_another_ca(tmp_path, timedelta(days=5)))
    ours = files_of(cluster, "ev-ca")["gateway.crt"]
    assert "gateway: certificate of tls renewed" in renew(cluster)
    assert issued_by(files_of(cluster, "ev-gateway-tls")["tls.crt"], ours)
    assert renew(cluster) == []
