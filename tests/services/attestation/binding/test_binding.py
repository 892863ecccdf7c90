"""Devices are bound to their TPMs, and earn KNOWN_TPM with a fresh challenge."""

from __future__ import annotations

import asyncio
import base64
import copy
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from contract.access import Role
from evergreen.v1 import attestation_pb2 as pb
from tests.fakes.tpm import Maker, SigningKey, Tpm, proof_of, some_nonce
from tests.support import callers
from tests.support.attestation import ORG, ROOT, SISTER, STRANGER, World, eventually, world
from tests.support.refusals import refusal

__all__ = ["world"]

MAKER = Maker()
FORGER = Maker("Forger")


async def trust(world: World, maker: Maker = MAKER) -> pb.TrustRoot:
    request = pb.CreateTrustRootRequest(certificate_pem=maker.root_pem)
    root: pb.TrustRoot = await world.admin.CreateTrustRoot(request, metadata=callers.user(ROOT.id))
    return root


async def ask(
    world: World, device: UUID, tpm: Tpm, *, maker: Maker | None = MAKER, **change: Any
) -> pb.TpmEnrollment:
    """Begins to bind a device to a TPM that a maker certified."""
    request = pb.CreateTpmEnrollmentRequest(ek_public=tpm.ek_public, ak_public=tpm.ak.public)
    if maker is not None:
        request.ek_certificate = maker.certify(tpm.ek)
        request.ek_chain.extend(maker.chain)
    for name, value in change.items():
        if name == "ek_chain":
            del request.ek_chain[:]
            request.ek_chain.extend(value)
        else:
            setattr(request, name, value)
    found: pb.TpmEnrollment = await world.admin.CreateTpmEnrollment(
        request, metadata=world.vouched(device)
    )
    return found


async def activate(world: World, device: UUID, enrollment_id: str, proof: bytes) -> pb.TpmBinding:
    found: pb.TpmBinding = await world.admin.ActivateTpmEnrollment(
        pb.ActivateTpmEnrollmentRequest(id=enrollment_id, proof=proof),
        metadata=world.vouched(device),
    )
    return found


async def bind(world: World, device: UUID, tpm: Tpm, **change: Any) -> pb.TpmBinding:
    """Binds a device to a TPM, all the way."""
    offer = await ask(world, device, tpm, **change)
    assert offer.id, list(offer.reasons)
    secret = tpm.give_away(offer.credential_blob, offer.encrypted_secret)
    assert secret is not None
    return await activate(world, device, offer.id, proof_of(secret, device))


async def challenge(world: World, device: UUID) -> bytes:
    found = await world.admin.CreateChallenge(
        pb.CreateChallengeRequest(), metadata=world.vouched(device)
    )
    assert (len(found.nonce), found.bank, list(found.pcrs)) == (32, "sha256", list(range(24)))
    return bytes(found.nonce)


async def test_a_bound_device_earns_known_tpm_for_each_fresh_challenge(world: World) -> None:
    """With the root added, the credential given away, and each challenge used once."""
    await trust(world)
    device, tpm = world.add(), Tpm()
    before = await world.attest(device, tpm.evidence(some_nonce(), device))
    assert before[0] == "SELF_CONSISTENT"
    assert "AK_NOT_BOUND" in before[1]
    bound = await bind(world, device, tpm)
    assert (bound.bound, bound.ek_hash_prefix) == (True, tpm.ek_sha256.hex()[:8])
    evidence = tpm.evidence(await challenge(world, device), device)
    assert await world.attest(device, evidence) == ("KNOWN_TPM", ["NO_REFERENCE_VALUES"])
    # A repeated call is no replay; ten minutes later it is one.
    assert (await world.attest(device, evidence))[0] == "KNOWN_TPM"
    shown = await world.get(device)
    assert (shown.verdict, shown.bound) == ("KNOWN_TPM", True)
    assert shown.ek_hash_prefix == bound.ek_hash_prefix
    assert (await world.history(device)).verdicts[0].verdict == "KNOWN_TPM"
    assert await world.list(verdict="KNOWN_TPM") == [str(device)]
    world.clock.ahead = timedelta(minutes=11)
    assert await world.attest(device, evidence) == ("FAILED", ["CHALLENGE_UNKNOWN"])
    fresh = tpm.evidence(await challenge(world, device), device)
    assert (await world.attest(device, fresh))[0] == "KNOWN_TPM"
    (event,) = await world.events("attestation.tpm_bound")
    assert event["data"]["after"] == {
        "ekHashPrefix": bound.ek_hash_prefix,
        "certified": True,
    }
    assert event["data"]["actor"] == f"device:{device}"


async def test_evidence_of_a_bound_device_that_is_not_fresh_or_not_its_own_fails(
    world: World,
) -> None:
    """Each refusal has its reason, and leaves the challenge for the right evidence."""
    await trust(world)
    device, tpm, neighbour, theirs = world.add(), Tpm(), world.add(), Tpm()
    await bind(world, device, tpm)
    await bind(world, neighbour, theirs)

    async def told(evidence: dict[str, Any], by: UUID = device) -> str:
        verdict, reasons = await world.attest(by, evidence)
        return reasons[0] if verdict == "FAILED" else verdict

    assert await told(tpm.evidence(some_nonce(), device)) == "CHALLENGE_UNKNOWN"
    old = await challenge(world, device)
    nonce = await challenge(world, device)
    others = await challenge(world, neighbour)
    assert await told(tpm.evidence(old, device)) == "NONCE_MISMATCH"
    assert await told(tpm.evidence(others, device)) == "NONCE_MISMATCH"
    assert await told(tpm.evidence(nonce, device, bare=True)) == "NONCE_MISMATCH"
    assert await told(tpm.evidence(nonce, neighbour)) == "NONCE_MISMATCH"
    assert await told(theirs.evidence(nonce, device)) == "AK_NOT_PINNED"
    assert await told(tpm.evidence(nonce, device, ak=SigningKey())) == "AK_NOT_PINNED"
    bad = tpm.evidence(nonce, device)
    bad["pcrs"]["0"] = "00" * 32
    assert await told(bad) == "PCR_DIGEST_MISMATCH"
    assert await told(tpm.evidence(nonce, device)) == "KNOWN_TPM"
    late = await challenge(world, device)
    world.clock.ahead = timedelta(seconds=301)
    assert await told(tpm.evidence(late, device)) == "CHALLENGE_EXPIRED"
    assert await told(tpm.evidence(late, device, ak=SigningKey())) == "AK_NOT_PINNED"
    # The neighbour is not touched by any of this.
    fresh = await challenge(world, neighbour)
    assert await told(theirs.evidence(fresh, neighbour), neighbour) == "KNOWN_TPM"


async def test_a_tpm_that_is_not_known_is_refused_with_its_reason(world: World) -> None:
    """Whatever is wrong, it is a 2xx without an id, and nothing is stored."""
    await trust(world)
    device, tpm, other = world.add(), Tpm(), Tpm()
    expected: list[tuple[dict[str, Any], str]] = [
        ({"maker": None}, "EK_UNTRUSTED"),
        ({"maker": FORGER}, "EK_UNTRUSTED"),
        ({"ek_chain": []}, "EK_UNTRUSTED"),
        ({"ek_chain": [b"no certificate"]}, "EK_CERTIFICATE_MALFORMED"),
        ({"ek_chain": MAKER.chain * 9}, "EK_CERTIFICATE_MALFORMED"),
        ({"ek_certificate": b"no certificate"}, "EK_CERTIFICATE_MALFORMED"),
        ({"ek_certificate": b"x" * 9000}, "EK_CERTIFICATE_MALFORMED"),
        ({"ek_certificate": MAKER.certify(other.ek)}, "EK_CERTIFICATE_OTHER_KEY"),
        ({"ek_public": tpm.ak.public}, "EK_TEMPLATE"),
        ({"ek_public": tpm.ek_public + b"\0"}, "EK_TEMPLATE"),
        ({"ek_public": tpm.ek_public[:-1]}, "EK_TEMPLATE"),
        ({"ek_public": tpm.ek_public[:-1] + b"\0"}, "EK_TEMPLATE"),
        ({"ak_public": tpm.ek_public}, "AK_MALFORMED"),
        ({"ak_public": tpm.ak.public[:7] + b"\x73" + tpm.ak.public[8:]}, "AK_ATTRIBUTES"),
    ]
    for change, reason in expected:
        offer = await ask(world, device, tpm, **change)
        assert (offer.id, list(offer.reasons)) == ("", [reason]), change
        assert not offer.credential_blob
    assert await world.sql("SELECT FROM attestation.tpm_enrollment") == []
    expired = await ask(world, device, tpm, ek_certificate=MAKER.certify(tpm.ek, days=-1))
    assert expired.id
    assert list(expired.reasons) == ["EK_CERTIFICATE_EXPIRED"]


async def test_only_the_tpm_gives_the_secret_away_and_only_once(world: World) -> None:
    """A wrong proof ends the enrollment; so do time, a newer one, and another device."""
    await trust(world)
    device, tpm, thief = world.add(), Tpm(), world.add()
    offer = await ask(world, device, tpm)
    # A software key under the real TPM's endorsement key: the TPM keeps the secret.
    forged = Tpm()
    forged.ak = SigningKey()
    assert forged.give_away(offer.credential_blob, offer.encrypted_secret) is None
    secret = tpm.give_away(offer.credential_blob, offer.encrypted_secret)
    assert secret is not None

    async def reasons(by: UUID, enrollment: str, proof: bytes) -> list[str]:
        done = await activate(world, by, enrollment, proof)
        assert not done.bound
        return list(done.reasons)

    proof = proof_of(secret, device)
    assert await reasons(thief, offer.id, proof_of(secret, thief)) == ["ENROLLMENT_UNKNOWN"]
    assert await reasons(device, str(uuid4()), proof) == ["ENROLLMENT_UNKNOWN"]
    assert await reasons(device, offer.id, proof_of(b"guessed", device)) == ["ACTIVATION_WRONG"]
    assert await reasons(device, offer.id, proof) == ["ENROLLMENT_UNKNOWN"]
    first = await ask(world, device, tpm)
    second = await ask(world, device, tpm)
    assert await reasons(device, first.id, proof) == ["ENROLLMENT_UNKNOWN"]
    world.clock.ahead = timedelta(seconds=301)
    secret = tpm.give_away(second.credential_blob, second.encrypted_secret)
    assert secret is not None
    assert await reasons(device, second.id, proof_of(secret, device)) == ["ENROLLMENT_EXPIRED"]
    assert (await bind(world, device, tpm)).bound


async def test_a_tpm_is_of_one_device_and_a_device_has_one_tpm(world: World) -> None:
    """Also across organisations, whoever is first; the answer does not say whose it is."""
    await trust(world)
    device, tpm, other = world.add(), Tpm(), world.add(SISTER.id)
    await bind(world, device, tpm)
    offer = await world.admin.CreateTpmEnrollment(
        pb.CreateTpmEnrollmentRequest(
            ek_public=tpm.ek_public,
            ek_certificate=MAKER.certify(tpm.ek),
            ek_chain=MAKER.chain,
            ak_public=SigningKey().public,
        ),
        metadata=world.vouched(other, SISTER.id),
    )
    assert (offer.id, list(offer.reasons)) == ("", ["EK_OF_ANOTHER_DEVICE"])
    assert list((await ask(world, device, Tpm())).reasons) == ["BOUND_TO_ANOTHER_TPM"]
    stolen = copy.copy(Tpm())
    stolen.ak = tpm.ak
    assert list((await ask(world, world.add(), stolen)).reasons) == ["AK_OF_ANOTHER_DEVICE"]
    # The same TPM may have a new key.
    tpm.ak = SigningKey()
    assert (await bind(world, device, tpm)).bound
    evidence = tpm.evidence(await challenge(world, device), device)
    assert (await world.attest(device, evidence))[0] == "KNOWN_TPM"
    assert len(await world.events("attestation.tpm_bound")) == 1


async def proofs(world: World, devices: list[UUID], tpms: list[Tpm]) -> list[tuple[str, bytes]]:
    """Enrollments that are open at the same time, each with its proof."""
    found = []
    for device, tpm in zip(devices, tpms, strict=True):
        offer = await ask(world, device, tpm)
        secret = tpm.give_away(offer.credential_blob, offer.encrypted_secret)
        assert secret is not None, list(offer.reasons)
        found.append((offer.id, proof_of(secret, device)))
    return found


@pytest.mark.parametrize("bound_before", [False, True])
async def test_of_two_devices_with_one_key_one_is_bound(world: World, bound_before: bool) -> None:
    """However close they come; the other one is told why, and keeps what it had."""
    await trust(world)
    devices, tpms = [world.add(), world.add()], [Tpm(), Tpm()]
    if bound_before:
        for device, tpm in zip(devices, tpms, strict=True):
            await bind(world, device, tpm)
    own, shared = [tpm.ak for tpm in tpms], SigningKey()
    for tpm in tpms:
        tpm.ak = shared
    opened = await proofs(world, devices, tpms)
    done = await asyncio.gather(
        *(activate(world, device, *one) for device, one in zip(devices, opened, strict=True))
    )
    assert sorted((binding.bound, *binding.reasons) for binding in done) == [
        (False, "AK_OF_ANOTHER_DEVICE"),
        (True,),
    ]
    winner = [binding.bound for binding in done].index(True)
    for index, (device, tpm) in enumerate(zip(devices, tpms, strict=True)):
        if index != winner and not bound_before:
            continue
        tpm.ak = shared if index == winner else own[index]
        evidence = tpm.evidence(await challenge(world, device), device)
        assert (await world.attest(device, evidence))[0] == "KNOWN_TPM"


async def test_a_key_that_is_being_bound_elsewhere_is_waited_for(world: World) -> None:
    """The one that commits first has it; the other one is refused by a constraint."""
    await trust(world)
    devices, tpms = [world.add(), world.add()], [Tpm(), Tpm()]
    for device, tpm in zip(devices, tpms, strict=True):
        await bind(world, device, tpm)
    tpms[1].ak = shared = SigningKey()
    ((enrollment, proof),) = await proofs(world, devices[1:], tpms[1:])
    other = await world.database.superuser()
    try:
        async with other.transaction():
            await other.execute(
                "UPDATE attestation.tpm_binding SET ak_name = $2 WHERE device_id = $1",
                devices[0],
                shared.name,
            )
            activation = asyncio.ensure_future(activate(world, devices[1], enrollment, proof))

            async def waits() -> bool:
                return bool(await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await eventually(waits)
        done = await activation
    finally:
        await other.close()
    assert list(done.reasons) == ["AK_OF_ANOTHER_DEVICE"]


async def test_what_is_not_trusted_any_more_is_not_bound(world: World) -> None:
    """A root that was removed, or a list that says otherwise, since the enrollment was opened."""
    root = await trust(world)
    device, tpm = world.add(serial="SN-7"), Tpm()
    await world.list()

    async def list_keys(csv: str) -> None:
        await world.admin.ImportEndorsementKeys(
            pb.ImportEndorsementKeysRequest(org_id=str(ORG.id), csv=csv, replace=True),
            metadata=callers.user(ORG.id, Role.ADMIN),
        )

    ((enrollment, proof),) = await proofs(world, [device], [tpm])
    await list_keys(f"serial,ek_hash\nsn-7,{'ab' * 32}\n")
    refused = await activate(world, device, enrollment, proof)
    assert (refused.bound, list(refused.reasons)) == (False, ["EK_UNTRUSTED"])
    await list_keys("serial,ek_hash\n")
    ((enrollment, proof),) = await proofs(world, [device], [tpm])
    await world.admin.DeleteTrustRoot(
        pb.DeleteTrustRootRequest(id=root.id), metadata=callers.user(ROOT.id)
    )
    refused = await activate(world, device, enrollment, proof)
    assert (refused.bound, list(refused.reasons)) == (False, ["EK_UNTRUSTED"])
    assert list((await ask(world, device, tpm)).reasons) == ["EK_UNTRUSTED"]
    await trust(world)
    assert (await bind(world, device, tpm)).bound


async def test_a_listed_tpm_is_known_without_a_certificate(world: World) -> None:
    """If it is listed for the device's serial number, in whatever spelling, in its organisation."""
    tpm = Tpm()
    listed = f"serial,ek_hash\nsn-7,{tpm.ek_sha256.hex()}\n"
    await world.admin.ImportEndorsementKeys(
        pb.ImportEndorsementKeysRequest(org_id=str(ORG.id), csv=listed),
        metadata=callers.user(ORG.id, Role.ADMIN),
    )
    other = world.add(serial="SN-8")
    device = world.add(serial="SN-7")
    await world.list()
    assert list((await ask(world, other, tpm, maker=None)).reasons) == ["EK_UNTRUSTED"]
    assert (await bind(world, device, tpm, maker=None)).bound
    evidence = tpm.evidence(await challenge(world, device), device)
    assert (await world.attest(device, evidence))[0] == "KNOWN_TPM"
    (event,) = await world.events("attestation.tpm_bound")
    assert event["data"]["after"]["certified"] is False


async def test_a_list_says_which_tpm_is_a_machines(world: World) -> None:
    """Another genuine one, which the machine may reach, is refused; others may have any."""
    await trust(world)
    tpm, other = Tpm(), Tpm()
    listed = f"serial,ek_hash\nsn-7,{tpm.ek_sha256.hex()}\n"
    await world.admin.ImportEndorsementKeys(
        pb.ImportEndorsementKeysRequest(org_id=str(ORG.id), csv=listed),
        metadata=callers.user(ORG.id, Role.ADMIN),
    )
    # The registry's feed has not told of this one: nobody knows its serial number.
    assert list((await ask(world, uuid4(), other)).reasons) == ["EK_UNTRUSTED"]
    device, unlisted = world.add(serial="SN-7"), world.add(serial="SN-8")
    await world.list()
    assert list((await ask(world, device, other)).reasons) == ["EK_UNTRUSTED"]
    assert (await bind(world, unlisted, other)).bound
    assert (await bind(world, device, tpm)).bound


async def test_an_administrator_frees_a_device_from_its_tpm(world: World) -> None:
    """Its verdict needs the TPM no more; it can be bound to another one, and the TPM elsewhere."""
    await trust(world)
    device, tpm = world.add(), Tpm()
    await bind(world, device, tpm)
    await world.attest(device, tpm.evidence(await challenge(world, device), device))
    request = pb.ResetTpmBindingRequest(device_id=str(device))
    for by, code in (
        (callers.user(STRANGER.id), grpc.StatusCode.NOT_FOUND),
        (callers.user(ORG.id, Role.AUDITOR), grpc.StatusCode.PERMISSION_DENIED),
    ):
        refused = await refusal(world.admin.ResetTpmBinding(request, metadata=by))
        assert refused.code is code
    assert (await world.get(device)).bound
    freed = await world.admin.ResetTpmBinding(request, metadata=world.owner)
    assert (freed.bound, freed.verdict) == (False, "SELF_CONSISTENT")
    again = await world.admin.ResetTpmBinding(request, metadata=world.owner)
    assert again == freed
    (event,) = await world.events("attestation.tpm_binding_reset")
    assert event["data"]["before"]["ekHashPrefix"] == tpm.ek_sha256.hex()[:8]
    evidence = tpm.evidence(some_nonce(), device)
    assert (await world.attest(device, evidence))[0] == "SELF_CONSISTENT"
    assert (await bind(world, device, Tpm())).bound
    # The TPM makes the same signing key in another machine.
    assert (await bind(world, world.add(), tpm)).bound


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_device_out_of_use_frees_its_tpm(world: World, deleted: bool) -> None:
    """Decommissioned or deleted: nothing names the TPM any more, and another device may have it."""
    await trust(world)
    device, tpm = world.add(), Tpm()
    await bind(world, device, tpm)
    await world.attest(device, tpm.evidence(await challenge(world, device), device))
    await challenge(world, device)
    world.change(device, ORG.id, "decommissioned", deleted=deleted)

    async def gone() -> bool:
        tables = ("tpm_binding", "challenge", "tpm_enrollment")
        return not any([await world.sql(f"SELECT FROM attestation.{t}") for t in tables])

    await eventually(gone)
    if not deleted:
        assert (await world.get(device)).verdict == "SELF_CONSISTENT"
    # With the same signing key, which the TPM makes for whoever has it next.
    assert (await bind(world, world.add(), tpm)).bound


async def test_what_has_expired_is_deleted(world: World) -> None:
    """Challenges and enrollments that nobody used, an hour later."""
    await trust(world)
    device = world.add()
    await ask(world, device, Tpm())
    await challenge(world, device)
    from services.attestation.binding import store  # noqa: PLC0415

    async with world.kit.database.system_transaction("a test") as connection:
        await store.forget_expired(connection, world.clock() + timedelta(hours=1))
    for table in ("challenge", "tpm_enrollment"):
        assert await world.sql(f"SELECT FROM attestation.{table}") == []


async def test_the_database_holds_bindings_to_one_device(world: World) -> None:
    """A second device of a TPM, or of its key, breaks a constraint; so does a missing binding."""
    await trust(world)
    device, tpm = world.add(), Tpm()
    await bind(world, device, tpm)
    copied = (
        "INSERT INTO attestation.tpm_binding SELECT gen_random_uuid(), tenant_id,"
        " gen_random_uuid(), {}, NULL, NULL, {}, ak_public, bound_at FROM attestation.tpm_binding"
    )
    with pytest.raises(asyncpg.UniqueViolationError, match="one_device"):
        await world.sql(copied.format("ek_sha256", "'other'::bytea"))
    with pytest.raises(asyncpg.UniqueViolationError, match="one_key"):
        await world.sql(copied.format("'other'::bytea", "ak_name"))
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="binding_exists"):
        await world.sql("DELETE FROM attestation.tpm_binding")


async def test_bindings_go_without_a_look_at_all_devices(world: World) -> None:
    """Thousands of a deleted tenant: each deletion asks who refers to the row, by an index."""
    unindexed = await world.sql(
        "SELECT conname FROM pg_constraint c WHERE contype = 'f'"
        " AND connamespace = 'attestation'::regnamespace AND NOT EXISTS (SELECT FROM pg_index i"
        " WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1] AND i.indisvalid)"
    )
    assert unindexed == []


def test_the_fake_reads_what_it_writes() -> None:
    """So that what is refused above is refused for what was changed."""
    assert base64.b64decode(Tpm().evidence(b"n" * 32, "d")["nonce"]) == b"n" * 32
