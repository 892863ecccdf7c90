"""The firmware's event log: what is believed of it, and what is found when it was changed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from services.attestation.evidence.event_log import MOST_BYTES, LogError, replay
from tests.fakes.boot import (
    EFI_ACTION,
    IPL,
    NO_ACTION,
    POST_CODE,
    SEPARATOR,
    Boot,
    Event,
    little,
    secure_boot,
)
from tests.support.paths import LONG

_MUTATIONS = 60_000 if LONG else 1_500


def registers(boot: Boot) -> dict[int, str]:
    return {index: value.hex() for index, value in boot.registers().items()}


def reason(log: bytes, pcrs: dict[int, str]) -> str:
    with pytest.raises(LogError) as found:
        replay(log, pcrs)
    return str(found.value.reason)


@pytest.mark.parametrize("secure", [True, False])
def test_a_log_that_explains_the_registers_is_believed(secure: bool) -> None:
    """It says whether secure boot is on; one without that variable says that it is not."""
    boot = Boot(secure=secure)
    assert replay(boot.log(), registers(boot)).secure_boot is secure
    del boot.events[2]
    assert not replay(boot.log(), registers(boot)).secure_boot


def test_a_start_in_another_locality_is_replayed() -> None:
    """PCR 0 then begins with its number."""
    from hashlib import sha256  # noqa: PLC0415

    boot = Boot()
    pcrs = registers(boot)
    value = bytes(31) + b"\x03"
    for event in boot.events:
        if event.pcr == 0:
            value = sha256(value + event.digest).digest()
    boot.events.insert(0, Event(0, NO_ACTION, b"StartupLocality\0\x03"))
    assert replay(boot.log(), pcrs | {0: value.hex()}).secure_boot
    assert reason(boot.log(), pcrs) == "LOG_MISMATCH"
    boot.events[0] = Event(0, NO_ACTION, b"StartupLocality\0\x07")
    assert reason(boot.log(), pcrs) == "LOG_MALFORMED"


def _swap(boot: Boot) -> None:
    boot.events[3], boot.events[12] = boot.events[12], boot.events[3]


CHANGES: list[tuple[str, Callable[[Boot], object], str]] = [
    ("reordered", _swap, "LOG_MISMATCH"),
    ("inserted", lambda b: b.events.insert(0, Event(0, POST_CODE, b"more")), "LOG_MISMATCH"),
    ("left out", lambda b: b.events.pop(0), "LOG_MISMATCH"),
    ("as no action", lambda b: b.changed(0, kind=NO_ACTION), "LOG_MISMATCH"),
    ("retyped to a separator", lambda b: b.changed(12, kind=SEPARATOR), "LOG_SEPARATOR_BAD"),
    ("a separator retyped", lambda b: b.changed(4, kind=IPL), "LOG_SEPARATOR_DISGUISED"),
    (
        "data under their digest",
        lambda b: b.changed(2, data=secure_boot(True).data, measured=secure_boot(False).data),
        "LOG_DIGEST_NOT_OF_DATA",
    ),
    (
        "an action's text",
        lambda b: b.changed(3, data=b"other", measured=b.events[3].data),
        "LOG_DIGEST_NOT_OF_DATA",
    ),
    ("a second SecureBoot", lambda b: b.events.insert(3, secure_boot(True)), "LOG_MALFORMED"),
    (
        "two separators",
        lambda b: b.events.append(Event(1, SEPARATOR, bytes(4))),
        "LOG_SEPARATOR_BAD",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
def test_a_changed_log_is_found(name: str, change: Callable[[Boot], object], expected: str) -> None:
    """With its reason; the registers are those of the boot that was."""
    boot = Boot(secure=False)
    pcrs = registers(boot)
    change(boot)
    assert reason(boot.log(), pcrs) == expected, name


def test_secure_boot_is_not_believed_behind_the_separator() -> None:
    """By then others than the firmware may have measured it."""
    boot = Boot(secure=False)
    del boot.events[2]
    boot.events.append(secure_boot(True))
    assert not replay(boot.log(), registers(boot)).secure_boot


def test_a_log_of_another_boot_or_none_explains_nothing() -> None:
    """Empty, of another firmware, or without what a register holds."""
    boot, other = Boot(), Boot(firmware=b"firmware 6.6")
    assert reason(b"", registers(boot)) == "LOG_INCOMPLETE"
    assert reason(other.log(), registers(boot)) == "LOG_MISMATCH"
    pcrs = registers(boot)
    pcrs[9] = "11" * 32
    assert reason(boot.log(), pcrs) == "LOG_INCOMPLETE"
    boot.events = [event for event in boot.events if event.kind != SEPARATOR]
    assert reason(boot.log(), registers(boot)) == "LOG_INCOMPLETE"


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log[:-1],
        lambda log: log + b"\0",
        lambda log: log[:20],
        lambda log: b"\1" + log[1:],
        lambda log: log.replace(b"Spec ID Event03", b"Spec ID Event02"),
        lambda log: log.replace(
            little(0x000B, 2) + little(32, 2), little(0x000C, 2) + little(32, 2)
        ),
        lambda log: log + b"\0" * (MOST_BYTES + 1),
        lambda log: log + Event(0, EFI_ACTION, b"").written()[:-4] + b"\xff\xff\xff\xff",
    ],
)
def test_what_is_no_log_is_malformed(change: Callable[[bytes], bytes]) -> None:
    """Truncated, with bytes too many, of another format or bank, or too long."""
    boot = Boot()
    assert reason(change(boot.log()), registers(boot)) == "LOG_MALFORMED"


@pytest.mark.hypothesis
def test_no_random_change_of_a_log_makes_it_say_more() -> None:
    """A log whose bytes differ is refused, or says of secure boot what the true one says."""
    source = random.Random(11)
    boot = Boot(secure=False)
    log, pcrs = boot.log(), registers(boot)
    for _ in range(_MUTATIONS):
        changed = bytearray(log)
        for _ in range(source.choice((1, 1, 2, 4))):
            at = source.randrange(len(changed))
            match source.randrange(4):
                case 0:
                    changed[at] ^= 1 << source.randrange(8)
                case 1:
                    changed[at] = source.randrange(256)
                case 2:
                    del changed[at : at + source.choice((1, 4, 32))]
                case _:
                    changed[at:at] = source.randbytes(source.choice((1, 4, 32)))
            if not changed:
                break
        try:
            assert not replay(bytes(changed), pcrs).secure_boot
        except LogError:
            continue
