"""The published log of keys, as those read it who know the offline root alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from servicekit.keys.log import (
    INSTALLATION,
    Action,
    Envelope,
    Head,
    certificate_request,
    entry,
    read,
)
from servicekit.security.signing import Signer

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
FIRST, SECOND, THIRD, ROOT = (Signer(bytes([number]) * 32) for number in range(1, 5))


def written(*said: tuple[Action, Signer, list[Signer]]) -> list[Envelope]:
    """A log; the root signs the certificates."""
    found: list[Envelope] = []
    for number, (action, key, signers) in enumerate(said):
        head = Head(number, found[-1].sha256 if found else "")
        certificate = None
        if action is Action.CERTIFY:
            request = certificate_request(INSTALLATION, key.public)
            certificate = request.signed_by([ROOT])
        found.append(
            entry(head, action, INSTALLATION, key.public, NOON, signers, certificate=certificate)
        )
    return found


CERTIFIED = (
    (Action.ADD, FIRST, [FIRST]),
    (Action.ROOT, ROOT, [FIRST]),
    (Action.CERTIFY, FIRST, [FIRST]),
)


@pytest.mark.parametrize("known", [ROOT, FIRST])
def test_beside_a_root_keys_online_vouch_for_no_new_one(known: Signer) -> None:
    """Whoever holds a certified key adds another one, which only its own certificate makes
    trusted; so it is for those who know the root, and for those who know the first key."""
    added = (*CERTIFIED, (Action.ADD, SECOND, [SECOND, FIRST]))
    log = read(written(*added), [known.public])
    assert [one.trusted for one in log.keys.values()] == [True, False]
    # Nor does one that is not trusted vouch for a third one.
    log = read(written(*added, (Action.ADD, THIRD, [THIRD, SECOND])), [known.public])
    assert [one.trusted for one in log.keys.values()] == [True, False, False]
    log = read(written(*added, (Action.CERTIFY, SECOND, [SECOND])), [known.public])
    assert [one.trusted for one in log.keys.values()] == [True, True]
    assert log.keys[SECOND.public.id].certified_by == ROOT.public.id


def test_a_key_that_is_known_from_elsewhere_is_trusted() -> None:
    """Whatever the root has certified."""
    log = read(
        written(*CERTIFIED, (Action.ADD, SECOND, [SECOND, FIRST])), [ROOT.public, SECOND.public]
    )
    assert [one.trusted for one in log.keys.values()] == [True, True]
