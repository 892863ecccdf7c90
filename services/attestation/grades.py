"""Verdicts, and the reasons that are given for them. Their names are part of the interface."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What is known of a device's boot, from the least to the most.

    A verdict says what the evidence proves, not how well the device is.
    """

    NONE = "NONE"
    """No evidence yet: there is no TPM, or the device has not sent any."""
    FAILED = "FAILED"
    """The latest evidence is wrong."""
    SELF_CONSISTENT = "SELF_CONSISTENT"
    """The evidence fits together. Nothing shows that a TPM made it."""
    KNOWN_TPM = "KNOWN_TPM"
    """A known TPM made it for a fresh challenge."""
    VERIFIED = "VERIFIED"
    """And the boot was one of those that the organisation accepts."""

    @property
    def needs_tpm(self) -> bool:
        """Whether only a device that is bound to a TPM can have it."""
        return self in {Verdict.KNOWN_TPM, Verdict.VERIFIED}


class Reason(StrEnum):
    """Why evidence failed, in the order of the checks, and what limits a better verdict."""

    NONCE_SIZE = "NONCE_SIZE"
    AK_MALFORMED = "AK_MALFORMED"
    AK_NAME_ALG = "AK_NAME_ALG"
    AK_ATTRIBUTES = "AK_ATTRIBUTES"
    AK_SCHEME = "AK_SCHEME"
    AK_KEY_SIZE = "AK_KEY_SIZE"
    PCRS_MALFORMED = "PCRS_MALFORMED"
    QUOTE_COUNT = "QUOTE_COUNT"
    QUOTE_VERSION = "QUOTE_VERSION"
    QUOTE_MAGIC = "QUOTE_MAGIC"
    QUOTE_TYPE = "QUOTE_TYPE"
    QUOTE_MALFORMED = "QUOTE_MALFORMED"
    SIGNATURE_MALFORMED = "SIGNATURE_MALFORMED"
    QUOTE_SIGNER = "QUOTE_SIGNER"
    SIGNATURE_SCHEME = "SIGNATURE_SCHEME"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    NONCE_MISMATCH = "NONCE_MISMATCH"
    PCR_SELECTION_EMPTY = "PCR_SELECTION_EMPTY"
    PCR_SELECTION_MISMATCH = "PCR_SELECTION_MISMATCH"
    PCR_BANK_UNKNOWN = "PCR_BANK_UNKNOWN"
    PCR_BANK_REPEATED = "PCR_BANK_REPEATED"
    PCR_DIGEST_MISMATCH = "PCR_DIGEST_MISMATCH"
    QUOTES_OF_TWO_BOOTS = "QUOTES_OF_TWO_BOOTS"
    PCR_BANK_WEAK = "PCR_BANK_WEAK"
    PCR_BANK_NOT_QUOTED = "PCR_BANK_NOT_QUOTED"
    EVIDENCE_REPLAYED = "EVIDENCE_REPLAYED"
    NONCE_REPLAYED = "NONCE_REPLAYED"
    AK_OF_ANOTHER_DEVICE = "AK_OF_ANOTHER_DEVICE"
    AK_NOT_PINNED = "AK_NOT_PINNED"
    CHALLENGE_UNKNOWN = "CHALLENGE_UNKNOWN"
    CHALLENGE_EXPIRED = "CHALLENGE_EXPIRED"
    LOG_MALFORMED = "LOG_MALFORMED"
    LOG_INCOMPLETE = "LOG_INCOMPLETE"
    LOG_MISMATCH = "LOG_MISMATCH"
    LOG_SEPARATOR_BAD = "LOG_SEPARATOR_BAD"
    LOG_SEPARATOR_DISGUISED = "LOG_SEPARATOR_DISGUISED"
    LOG_DIGEST_NOT_OF_DATA = "LOG_DIGEST_NOT_OF_DATA"
    USERSPACE_LOG_MALFORMED = "USERSPACE_LOG_MALFORMED"
    USERSPACE_LOG_MISMATCH = "USERSPACE_LOG_MISMATCH"
    DEVICE_CHOSE_NONCE = "DEVICE_CHOSE_NONCE"
    AK_NOT_BOUND = "AK_NOT_BOUND"
    PCR_UNMEASURED = "PCR_UNMEASURED"
    RESET_COUNT_WENT_BACK = "RESET_COUNT_WENT_BACK"
    NO_REFERENCE_VALUES = "NO_REFERENCE_VALUES"
    NO_EVENT_LOG = "NO_EVENT_LOG"
    SECURE_BOOT_OFF = "SECURE_BOOT_OFF"
    FIRMWARE_UNKNOWN = "FIRMWARE_UNKNOWN"
    OS_IMAGE_UNKNOWN = "OS_IMAGE_UNKNOWN"
    OS_IMAGE_NOT_ANCHORED = "OS_IMAGE_NOT_ANCHORED"


class BindingReason(StrEnum):
    """Why a device is not bound to a TPM, in the order of the checks, and what is told of one."""

    EK_TEMPLATE = "EK_TEMPLATE"
    EK_OF_ANOTHER_DEVICE = "EK_OF_ANOTHER_DEVICE"
    BOUND_TO_ANOTHER_TPM = "BOUND_TO_ANOTHER_TPM"
    EK_CERTIFICATE_MALFORMED = "EK_CERTIFICATE_MALFORMED"
    EK_CERTIFICATE_OTHER_KEY = "EK_CERTIFICATE_OTHER_KEY"
    EK_UNTRUSTED = "EK_UNTRUSTED"
    AK_OF_ANOTHER_DEVICE = "AK_OF_ANOTHER_DEVICE"
    ENROLLMENT_UNKNOWN = "ENROLLMENT_UNKNOWN"
    ENROLLMENT_EXPIRED = "ENROLLMENT_EXPIRED"
    ACTIVATION_WRONG = "ACTIVATION_WRONG"
    EK_CERTIFICATE_EXPIRED = "EK_CERTIFICATE_EXPIRED"


VERDICTS: Final = tuple(Verdict)
"""From the least to the most."""
