"""Reference values: from KNOWN_TPM to VERIFIED, and what they do not accept."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import attestation_pb2 as pb
from services.attestation.references import service
from services.attestation.references.domain import uki_pcr11
from tests.fakes.boot import IPL, Boot, Event, userspace_log
from tests.fakes.tpm import SigningKey, Tpm
from tests.services.attestation.binding.test_binding import bind, challenge, trust
from tests.support import callers
from tests.support.attestation import ORG, SISTER, STRANGER, World, world
from tests.support.refusals import refusal

__all__ = ["world"]

SECTIONS = {".linux": b"a kernel", ".cmdline": b"quiet", ".initrd": b"files"}


async def bound(world: World, model: str = "Book") -> tuple[UUID, Tpm]:
    """A device that is bound to its TPM."""
    device, tpm = world.add(model=model), Tpm()
    await world.list()
    await bind(world, device, tpm)
    return device, tpm


async def booted(
    world: World,
    device: UUID,
    tpm: Tpm,
    boot: Boot,
    *,
    log: bytes | None = None,
    userspace: bytes | None = None,
) -> tuple[str, list[str]]:
    """The verdict over a boot."""
    tpm.pcrs = boot.registers()
    evidence = tpm.evidence(await challenge(world, device), device)
    evidence["event_log"] = base64.b64encode(boot.log() if log is None else log).decode()
    if userspace is not None:
        evidence["userspace_log"] = base64.b64encode(userspace).decode()
    return await world.attest(device, evidence)


async def learn(world: World, device: UUID, kind: str, **more: Any) -> pb.ReferenceValue:
    found: pb.ReferenceValue = await world.admin.LearnReferenceValue(
        pb.LearnReferenceValueRequest(device_id=str(device), name=f"A {kind}", kind=kind, **more),
        metadata=world.owner,
    )
    return found


async def turn(world: World, value: pb.ReferenceValue, state: str) -> pb.ReferenceValue:
    found: pb.ReferenceValue = await world.admin.UpdateReferenceValue(
        pb.UpdateReferenceValueRequest(id=value.id, state=state), metadata=world.owner
    )
    return found


async def accept(world: World, device: UUID) -> list[pb.ReferenceValue]:
    """Accepts what a device booted last."""
    return [
        await turn(world, await learn(world, device, kind), "ACTIVE")
        for kind in ("FIRMWARE", "OS_IMAGE")
    ]


async def test_an_accepted_boot_of_a_known_tpm_is_verified(world: World) -> None:
    """Learned from one device, staged, active; then others of its model are verified."""
    await trust(world)
    (teacher, tpm), (pupil, other) = await bound(world), await bound(world)
    stranger, third = await bound(world, model="Tablet")
    assert await booted(world, teacher, tpm, Boot()) == ("KNOWN_TPM", ["NO_REFERENCE_VALUES"])
    firmware, image = (
        await learn(world, teacher, "FIRMWARE"),
        await learn(world, teacher, "OS_IMAGE"),
    )
    assert (firmware.state, firmware.source, firmware.model) == ("STAGED", "LEARNED", "Book")
    assert [pcr.index for pcr in firmware.accepted] == [0, 2, 7]
    assert [pcr.index for pcr in image.accepted] == [4, 11]
    assert await booted(world, pupil, other, Boot()) == ("KNOWN_TPM", ["NO_REFERENCE_VALUES"])
    await turn(world, firmware, "ACTIVE")
    assert await booted(world, pupil, other, Boot()) == ("KNOWN_TPM", ["OS_IMAGE_UNKNOWN"])
    await turn(world, image, "ACTIVE")
    assert await booted(world, pupil, other, Boot()) == ("VERIFIED", [])
    shown = await world.get(pupil)
    assert (shown.verdict, shown.secure_boot) == ("VERIFIED", True)
    assert set(shown.reference_value_ids) == {firmware.id, image.id}
    assert await booted(world, stranger, third, Boot()) == ("KNOWN_TPM", ["NO_REFERENCE_VALUES"])
    await turn(world, image, "RETIRED")
    assert await booted(world, pupil, other, Boot()) == ("KNOWN_TPM", ["OS_IMAGE_UNKNOWN"])
    names = [event["data"]["action"] for event in await world.events_of("reference-values")]
    assert names == [
        *["attestation.reference_value_created"] * 2,
        *["attestation.reference_value_updated"] * 2,
        "attestation.reference_value_retired",
    ]


async def test_a_boot_that_is_not_accepted_says_why(world: World) -> None:
    """Another firmware, another image, no secure boot, no log: known, and not verified."""
    await trust(world)
    device, tpm = await bound(world)
    await booted(world, device, tpm, Boot())
    await accept(world, device)
    assert await booted(world, device, tpm, Boot()) == ("VERIFIED", [])
    for boot, reasons in (
        (Boot(firmware=b"firmware 6.6"), ["FIRMWARE_UNKNOWN"]),
        (Boot(loader=b"loader 6.6"), ["OS_IMAGE_UNKNOWN"]),
        # What secure boot is measures into register 7, too.
        (Boot(secure=False), ["SECURE_BOOT_OFF", "FIRMWARE_UNKNOWN"]),
    ):
        assert await booted(world, device, tpm, boot) == ("KNOWN_TPM", reasons)
    tpm.pcrs = Boot().registers()
    bare = tpm.evidence(await challenge(world, device), device)
    assert await world.attest(device, bare) == ("KNOWN_TPM", ["NO_EVENT_LOG"])


async def test_a_log_that_does_not_fit_fails(world: World) -> None:
    """Of another boot, empty, or none at all; the good one is verified afterwards."""
    await trust(world)
    device, tpm = await bound(world)
    await booted(world, device, tpm, Boot())
    await accept(world, device)
    for log, reason in (
        (Boot(firmware=b"other").log(), "LOG_MISMATCH"),
        (b"", "LOG_INCOMPLETE"),
        (b"no log", "LOG_MALFORMED"),
    ):
        assert await booted(world, device, tpm, Boot(), log=log) == ("FAILED", [reason])
    tpm.pcrs = Boot().registers()
    evidence = tpm.evidence(await challenge(world, device), device)
    assert await world.attest(device, evidence | {"event_log": "no base64!"}) == (
        "FAILED",
        ["LOG_MALFORMED"],
    )
    assert await booted(world, device, tpm, Boot()) == ("VERIFIED", [])


async def test_a_new_image_is_verified_from_its_sections_alone(world: World) -> None:
    """In whatever phase of its start the agent sends the evidence; another image is not."""
    await trust(world)
    device, tpm = await bound(world)
    await booted(world, device, tpm, Boot())
    await turn(world, await learn(world, device, "FIRMWARE"), "ACTIVE")
    measured: list[str] = []
    for name, content in SECTIONS.items():
        measured += [sha256(name.encode() + b"\0").hexdigest(), sha256(content).hexdigest()]
    loader = Boot().registers()[4].hex()
    request = pb.CreateReferenceValueRequest(
        org_id=str(ORG.id), name="Image 2", kind="OS_IMAGE", pcrs={"4": loader}
    )
    # In any order: systemd-stub measures them in its own.
    for name in reversed(SECTIONS):
        request.uki_sections.add(name=name, sha256=sha256(SECTIONS[name]).hexdigest())
    value = await world.admin.CreateReferenceValue(request, metadata=world.owner)
    assert (value.source, value.state) == ("UKI", "STAGED")
    assert len(value.accepted[1].values) == 5
    await turn(world, value, "ACTIVE")
    phases = [sha256(p.encode()).hexdigest() for p in ("enter-initrd", "leave-initrd", "sysinit")]
    for so_far in range(4):
        boot = Boot(kernel=(*measured, *phases[:so_far]))
        assert await booted(world, device, tpm, boot) == ("VERIFIED", []), so_far
    other = Boot(kernel=(*measured[:-1], sha256(b"other files").hexdigest()))
    assert await booted(world, device, tpm, other) == ("KNOWN_TPM", ["OS_IMAGE_UNKNOWN"])


def test_register_11_is_predicted_as_systemd_measures() -> None:
    """Each section's name with a zero, then its content, in the order of systemd-stub."""
    value = bytes(32)
    for part in (b".linux\0", b"L", b".osrel\0", b"O", b".initrd\0", b"I"):
        value = sha256(value + sha256(part).digest()).digest()
    digests = {name: sha256(part).digest() for name, part in
               ((".initrd", b"I"), (".linux", b"L"), (".osrel", b"O"))}  # fmt: skip
    found = uki_pcr11(digests)
    assert found[0] == value.hex()
    assert found[1] == sha256(value + sha256(b"enter-initrd").digest()).hexdigest()
    assert len(set(found)) == 5


async def test_a_preview_counts_what_a_change_would_do(world: World) -> None:
    """By the latest evidence, and without any change."""
    await trust(world)
    (first, tpm), (second, other) = await bound(world), await bound(world)
    await booted(world, first, tpm, Boot())
    await booted(world, second, other, Boot(loader=b"loader 3.0"))
    firmware, image = await learn(world, first, "FIRMWARE"), await learn(world, first, "OS_IMAGE")
    newer = await learn(world, second, "OS_IMAGE")

    async def preview(activate: list[str], retire: list[str]) -> tuple[int, int, int]:
        found = await world.admin.PreviewReferenceValues(
            pb.PreviewReferenceValuesRequest(org_id=str(ORG.id), activate=activate, retire=retire),
            metadata=callers.user(ORG.id, Role.AUDITOR),
        )
        return found.devices, found.would_be_verified, found.would_not_be_verified

    assert await preview([firmware.id], []) == (2, 0, 0)
    assert await preview([firmware.id, image.id], []) == (2, 1, 0)
    assert await preview([firmware.id, image.id, newer.id], []) == (2, 2, 0)
    await turn(world, firmware, "ACTIVE")
    await turn(world, image, "ACTIVE")
    assert await booted(world, first, tpm, Boot()) == ("VERIFIED", [])
    assert await preview([newer.id], [image.id]) == (2, 1, 1)
    assert (await world.get(first)).verdict == "VERIFIED"
    for wrong in ("", "image"):
        refused = await refusal(preview([newer.id, wrong], []))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == ["activate[1]"]


async def test_a_preview_counts_equal_boots_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many devices as there are; different boots are graded in parts."""
    monkeypatch.setattr(service, "_GRADED_AT_ONCE", 2)
    await trust(world)
    teacher, tpm = await bound(world)
    await booted(world, teacher, tpm, Boot())
    firmware, image = await accept(world, teacher)
    copied = (
        "INSERT INTO attestation.tpm_binding SELECT gen_random_uuid(), tenant_id, d,"
        " d::text::bytea, NULL, NULL, d::text::bytea, ak_public, bound_at"
        " FROM attestation.tpm_binding, gen_random_uuid() AS d LIMIT 1 RETURNING id, device_id"
    )
    for number in range(7):
        ((binding, device),) = await world.sql(copied)
        await world.sql(
            "INSERT INTO attestation.device (device_id, tenant_id, status, model, verdict, bank,"
            " pcrs, attested_at, binding_id, secure_boot)"
            " SELECT $1, tenant_id, status, $2, verdict, bank,"
            " CASE WHEN $3::text IS NULL THEN pcrs ELSE jsonb_set(pcrs, '{4}', to_jsonb($3)) END,"
            " attested_at, $4, true FROM attestation.device WHERE device_id = $5",
            device,
            "BOOK" if number % 2 else "Book",
            f"{number:064x}" if number > 3 else None,
            binding,
            teacher,
        )
    found = await world.admin.PreviewReferenceValues(
        pb.PreviewReferenceValuesRequest(org_id=str(ORG.id)), metadata=world.owner
    )
    assert (found.devices, found.would_be_verified, found.would_not_be_verified) == (8, 5, 0)
    assert firmware.id != image.id


def started(*phases: str) -> Boot:
    """A unified kernel image that the firmware's log shows, and how far its start has come."""
    boot = Boot(kernel=tuple(sha256(phase.encode()).hexdigest() for phase in phases))
    boot.events += [Event(11, IPL, part) for part in (b".linux\0", b"a kernel", b".initrd\0")]
    return boot


async def test_what_user_space_measured_makes_no_other_image(world: World) -> None:
    """With its log the image alone is learned and compared, whatever was measured since."""
    await trust(world)
    (teacher, tpm), (pupil, other) = await bound(world), await bound(world)
    phases = ("enter-initrd", "leave-initrd")
    await booted(world, teacher, tpm, started(*phases), userspace=userspace_log(*phases))
    _, image = await accept(world, teacher)
    assert image.accepted[1].values == [started().registers()[11].hex()]
    assert (await world.get(teacher)).pcrs["11"] == started(*phases).registers()[11].hex()
    later = (*phases, "sysinit", "ready", "our own")
    for so_far in range(6):
        now = later[:so_far]
        told = await booted(world, pupil, other, started(*now), userspace=userspace_log(*now))
        assert told == ("VERIFIED", []), now
    found = await world.admin.PreviewReferenceValues(
        pb.PreviewReferenceValuesRequest(org_id=str(ORG.id)), metadata=world.owner
    )
    assert (found.devices, found.would_be_verified) == (2, 1)
    # Without it, what was measured since is in the register.
    told = await booted(world, pupil, other, started(*later))
    assert told == ("KNOWN_TPM", ["OS_IMAGE_UNKNOWN"])
    assert await booted(world, pupil, other, started()) == ("VERIFIED", [])
    for log, reason in (
        (userspace_log(*phases), "USERSPACE_LOG_MISMATCH"),
        (userspace_log(*reversed(later)), "USERSPACE_LOG_MISMATCH"),
        (b"", "USERSPACE_LOG_MISMATCH"),
        (b"no log", "USERSPACE_LOG_MALFORMED"),
        (userspace_log(*later)[:-3], "USERSPACE_LOG_MALFORMED"),
    ):
        told = await booted(world, pupil, other, started(*later), userspace=log)
        assert told == ("FAILED", [reason]), log
    evidence = other.evidence(await challenge(world, pupil), pupil)
    # It says nothing without the firmware's log.
    told = await world.attest(pupil, evidence | {"userspace_log": "no base64!"})
    assert told == ("KNOWN_TPM", ["NO_EVENT_LOG", "OS_IMAGE_UNKNOWN"])


async def test_a_boot_counter_that_went_back_is_told(world: World) -> None:
    """The TPM was cleared, or its machine was taken back; until it is bound anew."""
    await trust(world)
    device, tpm = await bound(world)
    # Blurred by a number of the key, which may make it begin anew.
    tpm.reset_count = (1 << 32) - 2
    await booted(world, device, tpm, Boot())
    await accept(world, device)
    tpm.reset_count = 3
    assert await booted(world, device, tpm, Boot()) == ("VERIFIED", [])
    assert await booted(world, device, tpm, Boot()) == ("VERIFIED", [])
    tpm.reset_count = 2
    for _ in range(2):
        told = await booted(world, device, tpm, Boot())
        assert told == ("KNOWN_TPM", ["RESET_COUNT_WENT_BACK"])
    assert (await bind(world, device, tpm)).bound
    assert (await booted(world, device, tpm, Boot()))[1] == ["RESET_COUNT_WENT_BACK"]
    tpm.ak = SigningKey()
    assert (await bind(world, device, tpm)).bound
    assert await booted(world, device, tpm, Boot()) == ("VERIFIED", [])
    tpm.reset_count = 1
    assert (await booted(world, device, tpm, Boot()))[0] == "KNOWN_TPM"
    await world.admin.ResetTpmBinding(
        pb.ResetTpmBindingRequest(device_id=str(device)), metadata=world.owner
    )
    assert (await bind(world, device, tpm)).bound
    assert await booted(world, device, tpm, Boot()) == ("VERIFIED", [])


async def test_register_11_alone_is_no_image(world: World) -> None:
    """Any program that is started instead can fill it: the loader is compared, or who signed it."""
    await trust(world)
    device, tpm = await bound(world)
    boot = Boot(kernel=(sha256(b"a kernel").hexdigest(),))
    await booted(world, device, tpm, boot)
    await turn(world, await learn(world, device, "FIRMWARE", pcrs=[0, 2]), "ACTIVE")
    alone = await turn(world, await learn(world, device, "OS_IMAGE", pcrs=[11]), "ACTIVE")
    assert await booted(world, device, tpm, boot) == ("KNOWN_TPM", ["OS_IMAGE_NOT_ANCHORED"])
    whole = await turn(world, await learn(world, device, "OS_IMAGE", pcrs=[4, 11]), "ACTIVE")
    assert await booted(world, device, tpm, boot) == ("VERIFIED", [])
    assert whole.id in (await world.get(device)).reference_value_ids
    await turn(world, whole, "RETIRED")
    anchor = await turn(world, await learn(world, device, "FIRMWARE", pcrs=[7]), "ACTIVE")
    assert await booted(world, device, tpm, boot) == ("VERIFIED", [])
    assert set((await world.get(device)).reference_value_ids) == {anchor.id, alone.id}


async def test_only_boots_of_known_tpms_are_learned(world: World) -> None:
    """Software can make up any other; and what a freed device booted is none of them."""
    await trust(world)
    device, tpm = await bound(world)
    request = pb.LearnReferenceValueRequest(device_id=str(device), name="x", kind="FIRMWARE")

    async def told(by: callers.Metadata) -> str:
        return (await refusal(world.admin.LearnReferenceValue(request, metadata=by))).reason

    assert await told(world.owner) == "TPM_NOT_KNOWN"
    await booted(world, device, tpm, Boot())
    await learn(world, device, "FIRMWARE")
    for by in (callers.user(STRANGER.id), callers.user(SISTER.id)):
        refused = await refusal(world.admin.LearnReferenceValue(request, metadata=by))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    await world.admin.ResetTpmBinding(
        pb.ResetTpmBindingRequest(device_id=str(device)), metadata=world.owner
    )
    assert await told(world.owner) == "TPM_NOT_KNOWN"


NO_VALUES = [
    ({}, "pcrs"),
    ({"pcrs": {"1": "00" * 32}}, "register"),
    ({"pcrs": {"0": "00" * 32}}, "register"),
    ({"pcrs": {"4": "00" * 20}}, "pcrs.4"),
    ({"pcrs": {"4": "AB" * 32}}, "pcrs.4"),
    ({"pcrs": {"04": "00" * 32}}, "register"),
    ({"accepted": [{"index": 4, "values": []}]}, "pcrs.4"),
    ({"accepted": [{"index": 4, "values": ["00" * 32] * 65}]}, "pcrs.4"),
    ({"uki_sections": [{"name": ".text", "sha256": "00" * 32}]}, "ukiSections"),
    ({"uki_sections": [{"name": ".linux", "sha256": "00"}]}, "ukiSections"),
    ({"uki_sections": [{"name": ".linux", "sha256": "00" * 32}] * 2}, "ukiSections"),
    ({"kind": "OTHER", "pcrs": {"4": "00" * 32}}, "kind"),
]


async def test_values_that_are_none_are_refused_by_their_field(world: World) -> None:
    """Also registers that differ between equal machines."""
    for change, about in NO_VALUES:
        request = pb.CreateReferenceValueRequest(org_id=str(ORG.id), name="x", **change)
        refused = await refusal(world.admin.CreateReferenceValue(request, metadata=world.owner))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert about in refused.body["message"]


async def test_what_all_evidence_is_compared_with_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In values, and in digests: they are read with each piece of evidence."""

    def make(*digits: str) -> Any:
        accepted = [pb.GivenPcr(index=4, values=[digit * 64 for digit in digits])]
        request = pb.CreateReferenceValueRequest(
            org_id=str(ORG.id), name="x", accepted=accepted, pcrs={"11": "ab" * 32}
        )
        return world.admin.CreateReferenceValue(request, metadata=world.owner)

    monkeypatch.setattr(service, "MOST_DIGESTS", 7)
    monkeypatch.setattr(service, "MOST_REFERENCES", 2)
    await make("a", "b", "c")
    assert (await refusal(make("a", "b", "c"))).reason == "TOO_MANY_REFERENCE_VALUES"
    await make("a", "b")
    monkeypatch.setattr(service, "MOST_DIGESTS", 100)
    assert (await refusal(make("a"))).reason == "TOO_MANY_REFERENCE_VALUES"


async def test_values_are_of_their_organisation(world: World) -> None:
    """Listed, changed and removed by those who may; etags are minded; nothing repeats."""
    made = pb.CreateReferenceValueRequest(org_id=str(ORG.id), name="Image", pcrs={"4": "ab" * 32})
    value = await world.admin.CreateReferenceValue(made, metadata=world.owner)
    assert (value.kind, value.source, dict(value.pcrs)) == (
        "OS_IMAGE",
        "UPLOADED",
        {"4": "ab" * 32},
    )
    page = await world.admin.ListReferenceValues(
        pb.ListReferenceValuesRequest(), metadata=callers.user(ORG.id, Role.AUDITOR)
    )
    assert list(page.reference_values) == [value]
    for org in (SISTER, STRANGER):
        theirs = await world.admin.ListReferenceValues(
            pb.ListReferenceValuesRequest(), metadata=callers.user(org.id)
        )
        assert not theirs.reference_values
    update = pb.UpdateReferenceValueRequest(id=value.id, name="Renamed", etag=value.etag)
    removal = pb.DeleteReferenceValueRequest(id=value.id)
    preview = pb.PreviewReferenceValuesRequest(org_id=str(ORG.id))
    stranger, auditor = callers.user(STRANGER.id), callers.user(ORG.id, Role.AUDITOR)
    api = world.admin
    for call, code in (
        (api.UpdateReferenceValue(update, metadata=stranger), grpc.StatusCode.NOT_FOUND),
        (api.DeleteReferenceValue(removal, metadata=stranger), grpc.StatusCode.NOT_FOUND),
        (api.CreateReferenceValue(made, metadata=stranger), grpc.StatusCode.NOT_FOUND),
        (api.PreviewReferenceValues(preview, metadata=stranger), grpc.StatusCode.NOT_FOUND),
        (api.UpdateReferenceValue(update, metadata=auditor), grpc.StatusCode.PERMISSION_DENIED),
        (api.DeleteReferenceValue(removal, metadata=auditor), grpc.StatusCode.PERMISSION_DENIED),
        (api.CreateReferenceValue(made, metadata=auditor), grpc.StatusCode.PERMISSION_DENIED),
    ):
        assert (await refusal(call)).code is code
    renamed = await api.UpdateReferenceValue(update, metadata=world.owner)
    assert renamed.name == "Renamed"
    assert renamed.etag != value.etag
    outdated = await refusal(api.UpdateReferenceValue(update, metadata=world.owner))
    assert outdated.code is grpc.StatusCode.ABORTED
    update.etag = renamed.etag
    assert await api.UpdateReferenceValue(update, metadata=world.owner) == renamed
    assert len(await world.events("attestation.reference_value_updated")) == 1
    await api.DeleteReferenceValue(removal, metadata=world.owner)
    gone = pb.DeleteReferenceValueRequest(id=str(uuid4()))
    for missing in (removal, gone):
        refused = await refusal(api.DeleteReferenceValue(missing, metadata=world.owner))
        assert refused.code is grpc.StatusCode.NOT_FOUND
