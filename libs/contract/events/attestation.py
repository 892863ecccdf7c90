"""What attestation tells: verdicts over boots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal

from contract.events.base import AT, ID, Action, CallsRefused, Export

VerdictName = Literal["NONE", "FAILED", "SELF_CONSISTENT", "KNOWN_TPM", "VERIFIED"]
"""Verdicts, from the least to the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerVerdict:
    """The verdict that was told of before."""

    verdict: VerdictName


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVerdict:
    """The verdict over the latest evidence."""

    verdict: VerdictName
    reasons: Annotated[tuple[str, ...], "Why it is no better one, for example `SIGNATURE_INVALID`."]
    attested_at: Annotated[datetime, "When the evidence was taken."]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChanged(Action):
    """The verdict over a device's boots is another one.

    A device has at most 24 such events a day; what changes more often is told on the next day.
    """

    NAME: ClassVar[str] = "attestation.verdict_changed"
    RESOURCE: ClassVar[str] = "devices/{id}"
    before: FormerVerdict
    after: NewVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTpm:
    """The TPM of a device."""

    ek_hash_prefix: Annotated[
        str, "The first eight hexadecimal digits of its endorsement key's SHA-256."
    ]
    certified: Annotated[
        bool | None,
        "Whether its certificate led to a root; else its key was listed. Null when it is freed.",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmBound(Action):
    """A device was bound to its TPM."""

    NAME: ClassVar[str] = "attestation.tpm_bound"
    RESOURCE: ClassVar[str] = "devices/{id}"
    after: BoundTpm


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmBindingReset(Action):
    """An administrator freed a device from its TPM."""

    NAME: ClassVar[str] = "attestation.tpm_binding_reset"
    RESOURCE: ClassVar[str] = "devices/{id}"
    before: BoundTpm


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSnapshot:
    """A certificate by which TPMs are known."""

    subject: str
    sha256: Annotated[str, "Of the certificate, in hexadecimal."]
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRootAdded(Action):
    """A certificate was added by which TPMs are known."""

    NAME: ClassVar[str] = "attestation.trust_root_added"
    RESOURCE: ClassVar[str] = "tpm-roots/{id}"
    after: RootSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRootRemoved(Action):
    """A certificate was removed by which TPMs were known."""

    NAME: ClassVar[str] = "attestation.trust_root_removed"
    RESOURCE: ClassVar[str] = "tpm-roots/{id}"
    before: RootSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedKeys:
    """What became of a list."""

    added: int
    unchanged: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKeysImported(Action):
    """A list of devices' endorsement keys was imported."""

    NAME: ClassVar[str] = "attestation.endorsement_keys_imported"
    RESOURCE: ClassVar[str] = "tenants/{id}/tpm-endorsement-keys"
    after: ImportedKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValueSnapshot:
    """What devices may boot."""

    name: str
    kind: Literal["FIRMWARE", "OS_IMAGE"]
    model: Annotated[str, "Only devices of this model; empty for all."]
    state: Literal["STAGED", "ACTIVE", "RETIRED"]
    source: Literal["LEARNED", "UPLOADED", "UKI"]
    pcrs: Annotated[tuple[int, ...], "The registers that it has values of."]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReferenceValueAction(Action):
    RESOURCE: ClassVar[str] = "reference-values/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValueCreated(_ReferenceValueAction):
    """A reference value was added, staged."""

    NAME: ClassVar[str] = "attestation.reference_value_created"
    after: ReferenceValueSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValueUpdated(_ReferenceValueAction):
    """A reference value has another name or state."""

    NAME: ClassVar[str] = "attestation.reference_value_updated"
    before: ReferenceValueSnapshot
    after: ReferenceValueSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValueRetired(_ReferenceValueAction):
    """A reference value does not count any more."""

    NAME: ClassVar[str] = "attestation.reference_value_retired"
    before: ReferenceValueSnapshot
    after: ReferenceValueSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValueDeleted(_ReferenceValueAction):
    """A reference value was removed."""

    NAME: ClassVar[str] = "attestation.reference_value_deleted"
    before: ReferenceValueSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationsExported(Action):
    """A user began to export verdicts."""

    NAME: ClassVar[str] = "attestation.attestations_exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/attestations"
    after: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKeysExported(Action):
    """An Owner began to export serial numbers and endorsement keys."""

    NAME: ClassVar[str] = "attestation.endorsement_keys_exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/tpm-endorsement-keys"
    after: Export


_ROOT: Final = RootSnapshot(
    subject="CN=Example TPM Root CA,O=Example,C=DE",
    sha256="9f5c3f7b1d2e4a60b8c7d6e5f4a3928170f1e2d3c4b5a69788796a5b4c3d2e1f",
    not_after=datetime(2046, 1, 1, tzinfo=UTC),
)

_REFERENCE: Final = ReferenceValueSnapshot(
    name="EvergreenOS 12.4",
    kind="OS_IMAGE",
    model="",
    state="STAGED",
    source="UKI",
    pcrs=(4, 11),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationCallsRefused(CallsRefused):
    """Calls of a user to attestation were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "attestation.calls_refused"


EXAMPLES: Final[tuple[Action, ...]] = (
    VerdictChanged(
        id=ID,
        before=FormerVerdict(verdict="NONE"),
        after=NewVerdict(
            verdict="SELF_CONSISTENT",
            reasons=("DEVICE_CHOSE_NONCE", "AK_NOT_BOUND"),
            attested_at=AT,
        ),
    ),
    TpmBound(id=ID, after=BoundTpm(ek_hash_prefix="5f3a09c2", certified=True)),
    TpmBindingReset(id=ID, before=BoundTpm(ek_hash_prefix="5f3a09c2", certified=None)),
    TrustRootAdded(id=ID, after=_ROOT),
    TrustRootRemoved(id=ID, before=_ROOT),
    EndorsementKeysImported(id=ID, after=ImportedKeys(added=30, unchanged=0, removed=2)),
    ReferenceValueCreated(id=ID, after=_REFERENCE),
    ReferenceValueUpdated(id=ID, before=_REFERENCE, after=_REFERENCE),
    ReferenceValueRetired(id=ID, before=_REFERENCE, after=_REFERENCE),
    ReferenceValueDeleted(id=ID, before=_REFERENCE),
    EndorsementKeysExported(id=ID, after=Export(format="csv", filter={"source": "BOUND"})),
    AttestationsExported(id=ID, after=Export(format="csv", filter={"verdict": "FAILED"})),
    AttestationCallsRefused.example("AttestationService/CreateReferenceValue"),
)
"""One of each; this is the list of what attestation sends."""
