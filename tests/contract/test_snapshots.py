"""What events say of things, byte by byte: the audit log hashes it, so it never changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from contract.access import Role
from servicekit.messaging.encoding import writer
from services.enrollment.registry.domain import Device, Hardware, Status
from services.enrollment.tokens.domain import EnrollmentToken
from services.identity.event_access.domain import EventCredential
from services.identity.tenants.domain import Tenant
from services.identity.users.domain import User
from services.policy.authoring.domain import Policy, snapshot

RECORDED = Path(__file__).parent / "recorded" / "snapshots.jsonl"
ONE, TWO, FOUR = (UUID(int=number) for number in (1, 2, 4))
AT = datetime(2026, 9, 1, 7, 58, 3, tzinfo=UTC)
LATE = datetime(2027, 1, 2, 3, 4, 5, 60700, UTC)
END = datetime.max.replace(tzinfo=UTC)
TEXT = 'Scho"ol \\ \x01\x7f\u2028 ä😀'
MODEL = Hardware(model=TEXT)


def policy(authored: str, version: int | None, description: str | None) -> Policy:
    return Policy(
        id=ONE,
        tenant_id=TWO,
        name=TEXT,
        description=description,
        authored=authored,
        revision=1,
        published_version=version,
        changed_since_publish=True,
        in_force=version is not None,
        created_at=AT,
        updated_at=AT,
    )


SMALL = '{"a":[1,2.50,1e300,null,true],"ä":{"b":"😀\\u0001"}}'
LARGE = json.dumps({"x": "y" * 200_000})
THINGS: list[Any] = [
    User(ONE, TWO, TEXT, Role.OWNER, "invited", AT),
    Tenant(ONE, None, "root", TEXT, "root", AT, AT),
    Tenant(ONE, TWO, "org", TEXT, "root", AT, AT),
    EventCredential(ONE, TWO, TEXT, AT, "x", LATE, TEXT, None, AT, LATE),
    EventCredential(ONE, TWO, TEXT, AT, "x", END, TEXT),
    Device(ONE, TWO, TEXT, MODEL, Status.PENDING, 3, None, None, AT),
    Device(
        ONE, TWO, TEXT, MODEL, Status.ACTIVE, 3, FOUR, None, AT, reenrollment_allowed_until=LATE
    ),
    EnrollmentToken(ONE, TWO, TEXT, AT, LATE, 0, 1 << 40, 3, True, None, AT),
    EnrollmentToken(ONE, TWO, TEXT, AT, AT, 0, 0, 3, False),
    *(
        policy(authored, version, description)
        for authored in (SMALL, LARGE)
        for version, description in ((None, None), (7, TEXT))
    ),
]


@pytest.mark.parametrize("number", range(len(THINGS)))
def test_a_snapshot_keeps_its_bytes(number: int) -> None:
    """Recorded before events were typed; awkward texts, times, numbers and nulls."""
    lines = RECORDED.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == len(THINGS)
    thing = THINGS[number]
    made = snapshot(thing) if isinstance(thing, Policy) else thing.snapshot()
    kind: Any = type(made)
    assert writer(kind)(made) == lines[number]
