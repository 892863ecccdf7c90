"""The checkpoint of the day by mail."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from auditlog.keys import read_keys
from auditlog.notes import TreeCheckpoint
from servicekit.ids import now
from services.audit.notices.service import Notices
from services.audit.settings import AuditSettings
from services.audit.tree import mail
from tests.support.audit import ROOT, Audit, StartAudit, event, start_audit

__all__ = ["start_audit"]


async def sent(audit: Audit) -> list[Any]:
    rows = await audit.sql("SELECT tenant_id, addresses, texts FROM audit.notice ORDER BY id")
    return [(row["tenant_id"], row["addresses"], json.loads(row["texts"])) for row in rows]


async def test_the_checkpoint_is_sent_once_a_day(
    start_audit: StartAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of several processes; its lines are a checkpoint that verifies."""
    monkeypatch.setattr(mail, "_LOOK_SECONDS", 0.05)
    audit = await start_audit(
        stream=False, audit_checkpoint_mail=" Auditor@district.example, b@school.example "
    )
    await audit.record(*(event(number) for number in range(3)))
    await audit.tree_checkpoint(3)
    async with asyncio.timeout(60):
        while not (found := await sent(audit)):
            await asyncio.sleep(0.05)
    tenant_id, addresses, texts = found[0]
    assert (tenant_id, addresses) == (ROOT.id, ["auditor@district.example", "b@school.example"])
    assert [text["language"] for text in texts] == ["en", "de"]
    for text in texts:
        read = TreeCheckpoint.read(text["paragraphs"][-1] + "\n")
        assert read.signed_by(read_keys(await audit.public_keys()))
    later = now() + timedelta(hours=23)

    def others() -> list[mail.CheckpointMail]:
        kit, addresses = audit.kit, ["c@school.example"]
        notices = Notices(kit.database, None, lambda: later)  # type: ignore[arg-type]
        tree = _Fixed(read)
        return [
            mail.CheckpointMail(
                kit.database,
                kit.tenants,
                tree,
                notices,
                addresses,
                lambda: later,  # type: ignore[arg-type]
            )
            for _ in range(3)
        ]

    await asyncio.gather(*(one.look() for one in others()))
    assert len(await sent(audit)) == 1
    later += timedelta(hours=2)
    await asyncio.gather(*(one.look() for one in others()))
    await asyncio.gather(*(one.look() for one in others()))
    assert len(await sent(audit)) == 2


class _Fixed:
    """Stands for the tree of another process."""

    def __init__(self, checkpoint: TreeCheckpoint) -> None:
        self._checkpoint = checkpoint

    async def checkpoint(self) -> TreeCheckpoint:
        return self._checkpoint


@pytest.mark.parametrize("addresses", ["nobody", "a@b.example, c d@e", "a@b.example," * 11])
def test_what_is_no_address_is_refused(addresses: str) -> None:
    with pytest.raises(ValidationError, match="EVERGREEN_AUDIT_CHECKPOINT_MAIL"):
        AuditSettings(  # type: ignore[call-arg]  # the others have defaults
            grpc_listen="unix:/x",
            internal_listen="unix:/y",
            database_url="x",
            audit_checkpoint_mail=addresses,
        )
