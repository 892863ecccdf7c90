"""The log of keys after a restore: it goes on above what is lost, and says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.data.backup import Recorded
from servicekit.keys import log as key_log
from servicekit.keys.log import Action, Envelope, Head
from servicekit.rpc.channels import open_channel
from servicekit.security.signing import Signer, read_pem_bundle
from services.policy import restore
from services.policy.__main__ import build
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.services.policy.keys.test_keys import Owner
from tests.support.policy import ORG, ROOT, TREE, World, world

__all__ = ["world"]

_TABLES = ("signing_keys", "key_log")
_AT = datetime(2026, 11, 30, tzinfo=UTC)
_ONE, _OTHER, _SCHOOLS = (Signer(bytes([number]) * 32) for number in (1, 2, 3))


async def _rows(connection: Any) -> dict[str, list[str]]:
    return {
        table: [
            row[0]
            for row in await connection.fetch(
                f"SELECT (to_jsonb(t) - 'changed_xid')::text FROM policy.{table} t"
            )
        ]
        for table in _TABLES
    }


async def _put_back(connection: Any, rows: dict[str, list[str]]) -> None:
    for table in _TABLES:
        columns = ", ".join(json.loads(rows[table][0]))
        await connection.execute(f"DELETE FROM policy.{table}")
        await connection.execute(
            f"INSERT INTO policy.{table} ({columns}) SELECT {columns}"
            f" FROM jsonb_populate_recordset(NULL::policy.{table}, $1::jsonb)",
            f"[{','.join(rows[table])}]",
        )


def _recorded(event: dict[str, Any]) -> Recorded:
    """What a restore reads of an entry of the audit log."""
    data = event["data"]
    kind, _, name = data["resource"].partition("/")
    at = datetime.fromisoformat(event["time"])
    return Recorded(UUID(event["tenantid"]), at, data["action"], kind, name, data["after"])


def _numbers(entries: Sequence[Envelope]) -> dict[int, str]:
    return {key_log.sequence_of(one): one.sha256 for one in entries}


@pytest.mark.parametrize("has_export", [True, False], ids=["audit log", "nothing else"])
async def test_no_number_stands_for_two_entries_after_a_restore(
    world: World, make_kit: MakeKit, serve: ServeService, has_export: bool
) -> None:
    """What ended since is in the new log, too, where an export of the audit log tells of it."""
    root = Owner(world, ROOT.id)
    first = read_pem_bundle(await world.pem())
    second = await root.rotate()
    school = await Owner(world, ORG.id).rotate()
    connection = await world.database.superuser()
    await connection.execute("SET evergreen.scope = '*'")
    backup = await _rows(connection)
    told = len(await world.events())
    await Owner(world, ORG.id).call("MarkPolicyKeyCompromised", id=school.id)
    (old,) = [key for key in (await root.keys()).values() if key.key_id == first[0].id]
    await root.call("RetirePolicyKey", id=old.id)
    lost = await root.entries()
    known = restore.Known()
    for event in (await world.events())[told:] if has_export else ():
        known.learn(_recorded(event))
    async with connection.transaction():
        await _put_back(connection, backup)
        await restore.repair(connection, known, [])
    await connection.close()
    settings = {
        name: f"{getattr(world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    kit = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(kit, build)
    channel = open_channel(kit.settings.grpc_listen, "test")
    again = Owner(world, ROOT.id, channel=channel)
    await again.rotate()
    entries = await again.entries()
    stub = policy_pb2_grpc.PolicyKeyServiceStub(channel)
    last = await stub.ListPolicyKeyLog(
        policy_pb2.ListPolicyKeyLogRequest(page_size=1), metadata=again.metadata
    )
    assert len(last.entries) == 1 and last.next_page_token
    await channel.close()
    common = {number: sha for number, sha in _numbers(lost).items() if number <= 3}
    mine, theirs = _numbers(entries), _numbers(lost)
    assert {number: mine[number] for number in mine.keys() & theirs.keys()} == common
    log = key_log.read(entries, first)
    (gap,) = log.gaps
    assert gap.behind.sequence == 3
    assert gap.sequence > max(theirs)
    assert gap.lost == (Head(max(theirs), theirs[max(theirs)]) if has_export else Head())
    ended = {one.key.id: one.state for one in log.keys.values()}
    assert ended[second.key_id] == "in use"
    assert ended[school.key_id] == ("revoked" if has_export else "in use")
    assert ended[first[0].id] == ("retired" if has_export else "in use")
    assert all(one.trusted for one in log.keys.values())


def _start() -> list[Envelope]:
    """A log with two keys of the installation and one of a school."""
    head, entries = Head(), []
    for key, scope in (
        (_ONE, key_log.INSTALLATION),
        (_OTHER, key_log.INSTALLATION),
        (_SCHOOLS, key_log.scope_of(ORG.id)),
    ):
        one = key_log.entry(head, Action.ADD, scope, key.public, _AT, [key, _ONE])
        head = Head(head.sequence + 1, one.sha256)
        entries.append(one)
    return entries


def _restored(signer: Signer, **changed: Any) -> Envelope:
    entries = _start()
    one = key_log.restored_entry(Head(3, entries[-1].sha256), Head(5, "9b" * 32), _AT, signer)
    said = json.loads(one.payload) | changed
    payload = json.dumps(said, separators=(",", ":")).encode()
    return Envelope(one.payload_type, payload).signed_by([signer])


def test_a_restored_log_goes_on_with_the_time() -> None:
    """Which is above all numbers that were given out, unless the clock is wrong."""
    one = _restored(_ONE)
    assert key_log.sequence_of(one) == int(_AT.timestamp())
    log = key_log.read([*_start(), one], [_ONE.public])
    assert (log.head.sequence, log.entries) == (key_log.sequence_of(one), 4)
    early = datetime(1970, 1, 1, tzinfo=UTC)
    for head, lost, wanted in ((3, 5, 6), (7, 5, 8), (0, 0, 1)):
        made = key_log.restored_entry(Head(head), Head(lost), early, _ONE)
        assert key_log.sequence_of(made) == wanted


@pytest.mark.parametrize(
    ("signer", "changed", "said"),
    [
        (Signer(bytes(32)), {}, "no key of the installation"),
        (_SCHOOLS, {}, "no key of the installation"),
        (_ONE, {"sequence": 3}, "has the number 3"),
        (_ONE, {"sequence": "4"}, "has the number 4"),
        (_ONE, {"previous": "9b" * 32}, "does not follow"),
        (_ONE, {"lost": None}, "does not say what is lost"),
        (_ONE, {"action": "add"}, "has the number"),
    ],
)
def test_a_gap_is_not_taken_from_everybody(
    signer: Signer, changed: dict[str, Any], said: str
) -> None:
    """Nor where it does not say where it is."""
    with pytest.raises(key_log.LogError, match=f"entry 4: .*{said}"):
        key_log.read([*_start(), _restored(signer, **changed)], [_ONE.public])
