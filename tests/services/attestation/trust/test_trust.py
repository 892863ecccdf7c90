"""By what TPMs are known: roots of the installation, listed keys of organisations."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha1
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contract.access import Role
from evergreen.v1 import attestation_pb2 as pb
from servicekit.ids import now
from services.attestation.trust import certificates, service
from services.attestation.trust.certificates import CertificateError, Root, follow
from tests.fakes.tpm import OF_ENDORSEMENT_KEYS, Maker, Tpm
from tests.support import callers
from tests.support.attestation import ORG, RESELLER, ROOT, SISTER, STRANGER, World, world
from tests.support.refusals import refusal

__all__ = ["world"]

OWNER = callers.user(ROOT.id)
HASH = "ab" * 32


async def test_owners_of_the_root_tenant_add_and_remove_roots(world: World) -> None:
    """Shown with subject, fingerprint and validity; nobody else changes them, and all see them."""
    maker = Maker()
    request = pb.CreateTrustRootRequest(certificate_pem=maker.root_pem)
    for by in (
        callers.user(RESELLER.id),
        callers.user(ORG.id),
        callers.user(ROOT.id, Role.ADMIN),
        callers.user(ROOT.id, Role.AUDITOR),
    ):
        refused = await refusal(world.admin.CreateTrustRoot(request, metadata=by))
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    root = await world.admin.CreateTrustRoot(request, metadata=OWNER)
    assert (root.subject, root.sha256) == (
        "CN=Maker root",
        maker.root.fingerprint(maker.root.signature_hash_algorithm).hex(),  # type: ignore[arg-type]
    )
    twice = await refusal(world.admin.CreateTrustRoot(request, metadata=OWNER))
    assert (twice.code, twice.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ROOT_EXISTS")
    listed = await world.admin.ListTrustRoots(
        pb.ListTrustRootsRequest(), metadata=callers.user(ORG.id, Role.AUDITOR)
    )
    assert list(listed.roots) == [root]
    removal = pb.DeleteTrustRootRequest(id=root.id)
    refused = await refusal(world.admin.DeleteTrustRoot(removal, metadata=callers.user(ORG.id)))
    assert refused.reason == "ROOT_ONLY"
    await world.admin.DeleteTrustRoot(removal, metadata=OWNER)
    gone = await refusal(world.admin.DeleteTrustRoot(removal, metadata=OWNER))
    assert gone.code is grpc.StatusCode.NOT_FOUND
    (added,) = await world.events("attestation.trust_root_added")
    (removed,) = await world.events("attestation.trust_root_removed")
    assert added["data"]["after"] == removed["data"]["before"]
    assert added["tenantid"] == str(ROOT.id)


async def test_what_is_no_single_ca_is_no_root(world: World) -> None:
    """400 that names the field."""
    maker = Maker()
    leaf = maker.certify(Tpm().ek)
    texts = {
        "a leaf": x509.load_der_x509_certificate(leaf)
        .public_bytes(serialization.Encoding.PEM)
        .decode(),
        "two": maker.root_pem * 2,
    }
    for pem in ("", "no certificate", *texts.values()):
        request = pb.CreateTrustRootRequest(certificate_pem=pem)
        refused = await refusal(world.admin.CreateTrustRoot(request, metadata=OWNER))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "certificatePem" in refused.body["message"]


def test_only_a_certificate_of_an_endorsement_key_leads_to_a_root() -> None:
    """A maker's CA certifies other keys too, which are in no TPM."""
    maker, key = Maker(), Tpm().ek
    tpm = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:49465800")])
    names = x509.SubjectAlternativeName([x509.DirectoryName(tpm)])
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    signing = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.3")])
    host = x509.SubjectAlternativeName([x509.DNSName("www.example.com")])
    root = Root(b"root", maker.root.public_bytes(serialization.Encoding.DER))

    def leads(**certificate: Any) -> bool:
        der = maker.certify(key, **certificate)
        return follow(der, maker.chain, {b"root": root}, now()).root is not None

    assert leads()
    assert leads(extension=names)
    for other in (None, server, signing, host):
        assert not leads(extension=other), other
    assert not leads(ca=True)


_WITH_SHA256, _WITH_SHA1 = (bytes.fromhex(f"2a864886f70d0101{last}") for last in ("0b", "05"))
_SHA1 = bytes.fromhex("3021300906052b0e03021a05000414")
"""What stands before a digest of SHA-1 in a signature (RFC 8017, 9.2)."""


def _signed_with_sha1(certificate: x509.Certificate, key: rsa.RSAPrivateKey) -> bytes:
    """A certificate as CAs once signed them; libraries do not any more."""
    numbers = key.private_numbers()
    size = key.key_size // 8
    signed = certificate.tbs_certificate_bytes.replace(_WITH_SHA256, _WITH_SHA1)
    digest = _SHA1 + sha1(signed).digest()
    block = b"\0\1" + b"\xff" * (size - len(digest) - 3) + b"\0" + digest
    number = pow(int.from_bytes(block, "big"), numbers.d, numbers.public_numbers.n)
    der = certificate.public_bytes(serialization.Encoding.DER)
    der = der.replace(_WITH_SHA256, _WITH_SHA1)
    return der.replace(certificate.signature, number.to_bytes(size, "big"))


def _ca(key: Any) -> tuple[x509.Certificate, Any]:
    """A root with a key, and what makes certificates of endorsement keys with it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Weak")])

    def made(public: Any, subject: x509.Name, extension: Any) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - timedelta(days=1))
            .not_valid_after(now() + timedelta(days=1))
            .add_extension(extension, critical=False)
            .sign(key, hashes.SHA256())
        )

    root = made(key.public_key(), name, x509.BasicConstraints(ca=True, path_length=None))
    return root, lambda public: made(public, x509.Name([]), OF_ENDORSEMENT_KEYS)


def test_weak_signatures_lead_to_no_root() -> None:
    """With SHA-1, or by a key that can be factored, anybody makes certificates."""
    ek = Tpm().ek

    def leads(key: Any, *, with_sha1: bool = False) -> bool:
        root, certify = _ca(key)
        pinned = Root(b"root", root.public_bytes(serialization.Encoding.DER))
        made = certify(ek)
        der = made.public_bytes(serialization.Encoding.DER)
        if with_sha1:
            der = _signed_with_sha1(made, key)
            assert isinstance(
                x509.load_der_x509_certificate(der).signature_hash_algorithm, hashes.SHA1
            )
        return follow(der, [], {b"root": pinned}, now()).root is not None

    strong = rsa.generate_private_key(65537, 2048)
    assert leads(strong)
    assert not leads(strong, with_sha1=True)
    assert not leads(rsa.generate_private_key(65537, 1024))
    assert leads(ec.generate_private_key(ec.SECP256R1()))
    assert not leads(ec.generate_private_key(ec.SECP192R1()))


async def test_a_root_with_a_short_key_is_refused(world: World) -> None:
    """400, with what it must have."""
    root, _ = _ca(rsa.generate_private_key(65537, 1024))
    pem = root.public_bytes(serialization.Encoding.PEM).decode()
    request = pb.CreateTrustRootRequest(certificate_pem=pem, validate_only=True)
    refused = await refusal(world.admin.CreateTrustRoot(request, metadata=OWNER))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "2048" in refused.body["message"]


def test_a_certificate_may_be_padded() -> None:
    """A TPM's memory is larger than what is in it; anything else behind it is refused."""
    maker, ek = Maker(), Tpm().ek
    root = Root(b"root", maker.root.public_bytes(serialization.Encoding.DER))
    der = maker.certify(ek)

    def read(data: bytes) -> bytes | None:
        return follow(data, maker.chain, {b"root": root}, now()).root

    for padding in (b"", b"\0", b"\xff" * 700, b"\0" * 700):
        assert read(der + padding) == b"root"
    for wrong in (der + b"x", der + b"\0\xff", der[:-1], b"\x30\x80" + der[4:] + b"\0\0"):
        with pytest.raises(CertificateError):
            read(wrong)


def test_a_root_is_read_once() -> None:
    """All roots are compared with each certificate."""
    maker = Maker()
    roots = {b"root": Root(b"root", maker.root.public_bytes(serialization.Encoding.DER))}
    follow(maker.certify(Tpm().ek), maker.chain, roots, now())
    before = certificates._load_root.cache_info()
    follow(maker.certify(Tpm().ek), maker.chain, roots, now())
    after = certificates._load_root.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_a_certificate_that_cannot_be_read_is_refused_as_such() -> None:
    """Whatever byte of it is wrong: some parts are read late."""
    maker = Maker()
    leaf, (ca,) = maker.certify(Tpm().ek), maker.chain
    root = Root(b"root", maker.root.public_bytes(serialization.Encoding.DER))
    refused = 0
    for at in range(len(ca)):
        for chain, der in (([_changed(ca, at)], leaf), ([ca], _changed(leaf, at))):
            try:
                follow(der, chain, {b"root": root}, now())
            except CertificateError:
                refused += 1
    assert refused > 100


async def exported(world: World, by: callers.Metadata, **request: Any) -> str:
    """The file."""
    asked = pb.ExportEndorsementKeysRequest(**{"org_id": str(ORG.id), **request})
    parts = [part.data async for part in world.admin.ExportEndorsementKeys(asked, metadata=by)]
    return b"".join(parts).decode().removeprefix("\ufeff")


async def test_owners_export_keys_as_a_list(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is listed, or what devices are bound to; it can be imported again. Nobody else may."""
    monkeypatch.setattr(service, "_EXPORT_PAGE", 2)
    assert (await exported(world, callers.user(ORG.id))).splitlines() == ["serial,ek_hash"]
    lines = [f"sn-{number},{number:064x}" for number in range(5)]
    request = pb.ImportEndorsementKeysRequest(
        org_id=str(ORG.id), csv="\n".join(["serial,ek_hash", *lines]), replace=True
    )
    owner = callers.user(ORG.id)
    await world.admin.ImportEndorsementKeys(request, metadata=owner)
    file = await exported(world, owner)
    assert file.splitlines()[0] == "serial,ek_hash"
    assert [line.casefold() for line in file.splitlines()[1:]] == lines
    request.csv = file
    again = await world.admin.ImportEndorsementKeys(request, metadata=owner)
    assert (again.added, again.unchanged, again.removed) == (0, 5, 0)
    # A list of nothing is one, too.
    request.csv = "serial,ek_hash\n"
    emptied = await world.admin.ImportEndorsementKeys(request, metadata=owner)
    assert (emptied.added, emptied.unchanged, emptied.removed) == (0, 0, 5)
    request.replace = False
    same = await world.admin.ImportEndorsementKeys(request, metadata=owner)
    assert (same.added, same.unchanged, same.removed) == (0, 0, 0)
    device = world.add(serial="SN-9")
    await world.list()
    await world.attest(device, {})
    await world.sql(
        "WITH b AS (INSERT INTO attestation.tpm_binding (id, tenant_id, device_id, ek_sha256,"
        " ak_name, ak_public, bound_at) VALUES (gen_random_uuid(), $1, $2, $3, '', '', now())"
        " RETURNING id) UPDATE attestation.device d SET binding_id = b.id FROM b"
        " WHERE d.device_id = $2",
        ORG.id,
        device,
        bytes.fromhex(HASH),
    )
    bound = await exported(world, callers.user(RESELLER.id), source="BOUND")
    assert bound.splitlines() == ["serial,ek_hash", f"SN-9,{HASH}"]
    for by, code in (
        (callers.user(ORG.id, Role.ADMIN), grpc.StatusCode.PERMISSION_DENIED),
        (callers.user(ORG.id, Role.AUDITOR), grpc.StatusCode.PERMISSION_DENIED),
        (callers.user(SISTER.id), grpc.StatusCode.NOT_FOUND),
        (callers.user(STRANGER.id), grpc.StatusCode.NOT_FOUND),
    ):
        assert (await refusal(exported(world, by))).code is code
    assert (await refusal(exported(world, owner, source="ALL"))).fields == ["source"]
    told = await world.events("attestation.endorsement_keys_exported")
    assert [event["data"]["after"]["filter"]["source"] for event in told] == [
        "LISTED",
        "LISTED",
        "BOUND",
    ]


def _changed(der: bytes, at: int) -> bytes:
    return der[:at] + b"\xff" + der[at + 1 :]


async def test_lists_of_keys_are_added_to_or_replaced(world: World) -> None:
    """With what became of each line; nothing changed, nothing told."""
    admin = callers.user(ORG.id, Role.ADMIN)

    async def imported(text: str, **more: bool) -> tuple[int, int, int]:
        done = await world.admin.ImportEndorsementKeys(
            pb.ImportEndorsementKeysRequest(org_id=str(ORG.id), csv=text, **more), metadata=admin
        )
        return done.added, done.unchanged, done.removed

    text = f"\ufeffSerial, EK_Hash\r\nSN-1,{HASH}\r\nSN-2,{'CD' * 32}\r\n\r\nsn-1,{HASH}\r\n"
    assert await imported(text) == (2, 0, 0)
    assert await imported(text) == (0, 2, 0)
    assert await imported(f"serial,ek_hash\nSN-3,{HASH}\n") == (1, 0, 0)
    assert await imported(text, replace=True) == (0, 2, 1)
    assert len(await world.events("attestation.endorsement_keys_imported")) == 3
    rows = await world.sql("SELECT tenant_id, serial_key FROM attestation.listed_key")
    assert {(row["tenant_id"], row["serial_key"]) for row in rows} == {
        (ORG.id, "sn-1"),
        (ORG.id, "sn-2"),
    }


WRONG_LISTS = [
    ("SN-1," + HASH, "header"),
    ("serial,ek_hash\nSN-1", "line 2"),
    ("serial,ek_hash\nSN-1," + HASH + ",more", "line 2"),
    ("serial,ek_hash\nSN-1,abc", "line 2"),
    ("serial,ek_hash\nSN-1," + HASH + "\n," + HASH, "line 3"),
    ("serial,ek_hash\nSN-1," + "x" * 200_000, "csv"),
]


async def test_a_list_that_is_wrong_is_refused_by_its_line(world: World) -> None:
    """Whole: nothing of it is taken."""
    for text, about in WRONG_LISTS:
        request = pb.ImportEndorsementKeysRequest(org_id=str(ORG.id), csv=text)
        refused = await refusal(
            world.admin.ImportEndorsementKeys(request, metadata=callers.user(ORG.id))
        )
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert about in refused.body["message"]
        assert await world.sql("SELECT FROM attestation.listed_key") == []


async def test_an_organisations_list_is_its_own(world: World) -> None:
    """Neighbours cannot write it, nor may Auditors."""
    request = pb.ImportEndorsementKeysRequest(
        org_id=str(ORG.id), csv=f"serial,ek_hash\nSN-1,{HASH}\n"
    )
    for by, code in (
        (callers.user(SISTER.id), grpc.StatusCode.NOT_FOUND),
        (callers.user(STRANGER.id), grpc.StatusCode.NOT_FOUND),
        (callers.user(ORG.id, Role.AUDITOR), grpc.StatusCode.PERMISSION_DENIED),
    ):
        refused = await refusal(world.admin.ImportEndorsementKeys(request, metadata=by))
        assert refused.code is code
    assert await world.sql("SELECT FROM attestation.listed_key") == []
