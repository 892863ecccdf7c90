"""Random histories of organisations against two processes of the service, which lag behind.

Whatever is published, withdrawn, rolled back, moved and restored, by this release and the one
before, for all devices and for those of a group that devices join and leave: no device gets a
number that is not above its own, no number stands for two contents, every device ends with what it
is to have, and is left alone then.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import UUID, uuid4

import grpc
import httpx
import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.feeds import changes, feed
from servicekit.rpc.channels import open_channel
from services.policy import restore
from services.policy.__main__ import build
from services.policy.authoring.document import parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.restore import Known
from services.policy.settings import PolicySettings
from services.policy.stamps import service as stamps_service
from tests.conftest import MakeKit, ServeService, tenant
from tests.support import callers
from tests.support.paths import LONG
from tests.support.policy import RESELLER, TREE, Admin, Device, FakeRegistry, neighbours, verified
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

_HISTORIES: Final = 1_000 if LONG else 25
_STEPS: Final = 30
_DEVICES: Final = 3
_AT_ONCE: Final = 5
_LAG: Final = 0.1
"""So many seconds a process lags behind."""
_QUIET: Final = 10
"""So many polls in a row bring nothing to a device that has all."""
_TABLES: Final = (
    "policies",
    "versions",
    "version_counters",
    "assignments",
    "documents",
    "signatures",
    "stamps",
    "editions",
    "bindings",
    "profiles",
)
_CONTENTS: Final[list[dict[str, Any]]] = [
    {"security": {"selinux_enforce": True}},
    {"security": {"selinux_enforce": True, "ssh_enabled": True}},
    {"updates": {"channel": "beta"}, "security": {"selinux_enforce": True}},
]
_OF_GROUP: Final = ("https://first.example", "https://second.example")
"""What the group's policy says, and no other one says."""


@dataclass
class Laptop:
    """A device of a history, with what it has."""

    calls: tuple[Device, ...]
    """By each process."""
    has: int = 0
    content: str = ""
    in_group: bool = False
    key: int = 0
    """Which of the organisation's keys it pins."""


@dataclass
class History:
    """One organisation, and what has to be true of it."""

    org: UUID
    connection: Any
    admins: tuple[Admin, ...]
    random: Random
    laptops: list[Laptop]
    registry: FakeRegistry
    group: UUID
    keys: tuple[tuple[str, str], ...]
    """The first key of all, and one of the organisation: their ids, and in PEM."""
    policies: list[str] = field(default_factory=list)
    of_group: list[str] = field(default_factory=list)
    stood: dict[int, str] = field(default_factory=dict)
    """What each number stood for."""
    backup: dict[str, list[str]] | None = None
    restored: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    async def step(self) -> None:
        """Something that an admin, a device or an operator does now."""
        steps = {
            "publish": 2,
            "rollback": 1,
            "withdraw": 1,
            "move": 5,
            "published_before": 1,
            "publish_for_group": 1,
            "withdraw_from_group": 1,
            "join_or_leave": 4,
            "enroll_again": 1,
            "back_up": 1,
            "restore": 1,
            "poll": 20,
        }
        name = self.random.choices(list(steps), list(steps.values()))[0]
        self.counts[name] += 1
        await getattr(self, name)()

    @property
    def admin(self) -> Admin:
        """An administrator, by any of the processes."""
        return self.random.choice(self.admins)

    async def publish(self) -> None:
        """A policy, as it was or for the first time."""
        if len(self.policies) < len(_CONTENTS):
            bundle = _CONTENTS[len(self.policies)]
            self.policies.append((await self.admin.create(self.org, bundle)).id)
        await self.admin.call("PublishPolicy", id=self.random.choice(self.policies))

    async def rollback(self) -> None:
        """Any version of any policy."""
        rows = await self.connection.fetch(
            "SELECT v.policy_id, v.version FROM policy.versions v JOIN policy.policies p"
            " ON p.id = v.policy_id WHERE v.tenant_id = $1",
            self.org,
        )
        if rows:
            policy_id, version = self.random.choice(rows)
            await self.admin.call("RollbackPolicy", id=str(policy_id), version=str(version))

    async def withdraw(self) -> None:
        """Leaves nothing in force."""
        if self.policies:
            await self.admin.call("WithdrawPolicy", id=self.random.choice(self.policies))

    async def publish_for_group(self) -> None:
        """One of two policies, as it was or for the first time."""
        if len(self.of_group) < len(_OF_GROUP):
            bundle = {"browser": {"homepage": _OF_GROUP[len(self.of_group)]}}
            targets = policy_pb2.PolicyTargetsChange(group_ids=[str(self.group)])
            made = await self.admin.call(
                "CreatePolicy", org_id=str(self.org), name="x", bundle=bundle, targets=targets
            )
            self.of_group.append(made.id)
        await self.admin.call("PublishPolicy", id=self.random.choice(self.of_group))

    async def withdraw_from_group(self) -> None:
        """Leaves nothing in force for the group, or what is."""
        if self.of_group:
            await self.admin.call("WithdrawPolicy", id=self.random.choice(self.of_group))

    async def join_or_leave(self) -> None:
        """A device, and every process knows it when it looks."""
        laptop = self.random.choice(self.laptops)
        laptop.in_group = not laptop.in_group
        self.register(laptop)

    async def enroll_again(self) -> None:
        """A device, which goes on with another key and what it has: both are in its start file."""
        laptop = self.random.choice(self.laptops)
        laptop.key = 1 - laptop.key
        self.register(laptop)

    def register(self, laptop: Laptop) -> None:
        """Lets the registry tell of a device."""
        groups = [self.group] if laptop.in_group else []
        key_id, _ = self.keys[laptop.key]
        self.registry.put(laptop.calls[0].id, self.org, *groups, key_id=key_id)

    async def move(self) -> None:
        """Brings back what an older number stands for, as a change of groups does."""
        await self.connection.execute(
            "UPDATE policy.assignments a SET policy_id = v.policy_id, version = v.version,"
            " changed_xid = pg_current_xact_id() FROM policy.versions v"
            " WHERE a.tenant_id = $1 AND v.tenant_id = $1 AND v.version ="
            " (SELECT version FROM policy.versions WHERE tenant_id = $1 AND targets IS NULL"
            " ORDER BY hashtext(version::text || $2) LIMIT 1)",
            self.org,
            str(self.random.random()),
        )
        if self.random.random() < 0.8:
            await asyncio.sleep(3 * _LAG)
            # One that had a newer number needs one that nobody had.
            for laptop in self.laptops:
                await self.answered(laptop)

    async def published_before(self) -> None:
        """A publish of what was published once, by the statements of 0.1.0."""
        async with self.connection.transaction():
            await self.connection.execute(
                "SELECT FROM policy.version_counters WHERE tenant_id = $1 FOR UPDATE", self.org
            )
            number = await self.connection.fetchval(
                "INSERT INTO policy.versions (tenant_id, version, policy_id, authored, document,"
                " signature, statement_payload, statement_signature, key_id, rollback_of,"
                " published_at, published_by) SELECT v.tenant_id, c.last_version + 1, v.policy_id,"
                " v.authored, v.document, v.signature, v.statement_payload, v.statement_signature,"
                " v.key_id, NULL, now(), '' FROM policy.versions v"
                " JOIN policy.version_counters c ON c.tenant_id = v.tenant_id"
                " WHERE v.tenant_id = $1 AND v.targets IS NULL"
                " ORDER BY hashtext(v.version::text || $2) LIMIT 1"
                " RETURNING version",
                self.org,
                str(self.random.random()),
            )
            if number is None:
                return
            await self.connection.execute(
                "UPDATE policy.version_counters SET last_version = $2 WHERE tenant_id = $1",
                self.org,
                number,
            )
            await self.connection.execute(
                "INSERT INTO policy.assignments (id, tenant_id, policy_id, version)"
                " SELECT $1, v.tenant_id, v.policy_id, v.version FROM policy.versions v"
                " WHERE v.tenant_id = $2 AND v.version = $3"
                " ON CONFLICT (tenant_id, target) DO UPDATE"
                " SET policy_id = excluded.policy_id, version = excluded.version,"
                " changed_xid = pg_current_xact_id()",
                uuid4(),
                self.org,
                number,
            )

    async def back_up(self) -> None:
        """All rows of the organisation, once it has published."""
        if self.policies and self.of_group:
            self.backup = {
                table: [
                    row[0]
                    for row in await self.connection.fetch(
                        f"SELECT (to_jsonb(t) - 'changed_xid')::text FROM policy.{table} t"
                        " WHERE t.tenant_id = $1",
                        self.org,
                    )
                ]
                for table in _TABLES
            }

    async def restore(self) -> None:
        """The rows of the backup, and the repairs of a restore, which knows more or less."""
        if self.backup is None:
            return
        async with self.connection.transaction():
            known = Known()
            # A second one that knows nothing of the first would give out the same numbers.
            if self.restored or self.random.random() < 0.5:
                await known.read(self.connection)
                known.versions = {self.org: known.versions[self.org]}
            for table in reversed(_TABLES):
                await self.connection.execute(
                    f"DELETE FROM policy.{table} WHERE tenant_id = $1", self.org
                )
            for table in _TABLES:
                columns = ", ".join(
                    row[0]
                    for row in await self.connection.fetch(
                        "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass"
                        " AND attnum > 0 AND NOT attisdropped AND attname <> 'changed_xid'",
                        f"policy.{table}",
                    )
                )
                # What the trigger wrote is in the backup too.
                await self.connection.execute(
                    f"DELETE FROM policy.{table} WHERE tenant_id = $1"
                    if table == "stamps"
                    else "SELECT $1::uuid",
                    self.org,
                )
                await self.connection.execute(
                    f"INSERT INTO policy.{table} ({columns}) SELECT {columns} FROM"
                    f" jsonb_populate_recordset(NULL::policy.{table}, $1::jsonb)"
                    " ON CONFLICT DO NOTHING",
                    f"[{','.join(self.backup[table])}]",
                )
            # It repairs what it sees; the other histories go on.
            await self.connection.execute(
                f"SET LOCAL ROLE evergreen_policy; SET LOCAL evergreen.scope = '{self.org}'"
            )
            await restore.repair(self.connection, known, [self.org])
        self.restored = True
        there = {json.loads(row)["id"] for row in self.backup["policies"]}
        self.policies = [one for one in self.policies if one in there]
        self.of_group = [one for one in self.of_group if one in there]

    async def poll(self) -> None:
        """A device, by one process; some answers are lost on their way."""
        laptop = self.random.choice(self.laptops)
        await self.answered(laptop, lost=self.random.random() < 0.2)

    async def answered(self, laptop: Laptop, *, lost: bool = False) -> bool:
        """Whether a device got something, which has to be right."""
        answer = await self.random.choice(laptop.calls).pull(str(laptop.has or ""))
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return False
        assert answer.status_code == httpx.codes.OK, answer.text
        # By the key that it pins, whatever else happened.
        verified(self.keys[laptop.key][1], answer)
        envelope = answer.json()
        version, content = int(envelope["version"]), json.dumps(envelope["policy"])
        assert version > laptop.has
        assert self.stood.setdefault(version, content) == content
        # Never what was replaced: nothing else happens to the organisation meanwhile.
        assert content == await self.wanted(laptop)
        cause = await self.connection.fetchval(
            "SELECT cause FROM policy.stamps WHERE tenant_id = $1 AND version = $2",
            self.org,
            version,
        )
        self.counts[cause] += 1
        if not lost:
            laptop.has, laptop.content = version, content
        return True

    async def wanted(self, laptop: Laptop) -> str | None:
        """What a device is to have."""
        document = await self.connection.fetchval(
            "SELECT convert_from(v.document, 'UTF8') FROM policy.assignments a"
            " JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
            " WHERE a.tenant_id = $1",
            self.org,
        )
        homepage = await self.connection.fetchval(
            "SELECT convert_from(v.document, 'UTF8')::jsonb -> 'browser' ->> 'homepage'"
            " FROM policy.bindings b"
            " JOIN policy.versions v ON v.tenant_id = b.tenant_id AND v.version = b.version"
            " WHERE b.tenant_id = $1 AND b.target_id = $2",
            self.org,
            self.group,
        )
        if homepage is None or not laptop.in_group:
            return None if document is None else json.dumps(json.loads(document))
        found = json.loads(document or encode_document(parse_document({})))
        found["browser"]["homepage"] = homepage
        return json.dumps(found)

    async def knows_all(self) -> bool:
        """Whether no device has a number that a restore lost: the next publish goes above it."""
        known = {
            row[0]
            for row in await self.connection.fetch(
                "SELECT version FROM policy.versions WHERE tenant_id = $1"
                " UNION SELECT version FROM policy.stamps WHERE tenant_id = $1",
                self.org,
            )
        }
        return {laptop.has for laptop in self.laptops} <= known | {0}

    async def end(self) -> None:
        """Every device comes to what it is to have, and is left alone then."""
        nothing = [await self.wanted(laptop) is None for laptop in self.laptops]
        if any(nothing) or not await self.knows_all():
            await self.publish()
        async with asyncio.timeout(PATIENCE):
            for laptop in self.laptops:
                # What is being put together is answered like what has not changed, for a moment.
                quiet = 0
                while quiet < _QUIET or laptop.content != await self.wanted(laptop):
                    quiet = 0 if await self.answered(laptop) else quiet + 1
                    await asyncio.sleep(_LAG)
        for laptop in self.laptops:
            for call in laptop.calls:
                assert (await call.pull(str(laptop.has))).status_code == httpx.codes.NOT_MODIFIED


@pytest.mark.timeout(3600 if LONG else 180)
async def test_numbers_stand_for_one_content_in_any_history(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In as many organisations at the same time, each with devices that call both processes."""
    # Histories are quicker than life.
    monkeypatch.setattr(stamps_service, "_DRAWS", 1_000_000)
    monkeypatch.setattr(changes, "POLL_SECONDS", _LAG)
    monkeypatch.setattr(feed, "POLL_SECONDS", _LAG)
    orgs = [tenant(1_000 + number, RESELLER) for number in range(_HISTORIES)]
    kits = [await make_kit("policy", PolicySettings, tenants=[*TREE, *orgs])]
    async with neighbours(kits[0]) as around:
        await serve(kits[0], build)
        settings = {
            name: f"{getattr(kits[0].settings, name)}2"
            for name in ("grpc_listen", "internal_listen", "http_listen")
        }
        kits.append(await make_kit("policy", PolicySettings, tenants=[*TREE, *orgs], **settings))
        await serve(kits[1], build)
        channels = [open_channel(kit.settings.grpc_listen, "test") for kit in kits]
        async with asyncio.timeout(PATIENCE):
            for kit, channel in zip(kits, channels, strict=True):
                probe = Device(kit, channel, uuid4(), orgs[0].id)
                while (await probe.pull()).status_code != httpx.codes.NOT_MODIFIED:
                    await asyncio.sleep(_LAG)
        pem = await policy_pb2_grpc.PolicyKeyServiceStub(channels[0]).GetPolicyKeysPem(
            policy_pb2.GetPolicyKeysPemRequest()
        )
        first = pem.data.decode()
        counts: Counter[str] = Counter()
        free = asyncio.Semaphore(_AT_ONCE)

        async def live(number: int, org: UUID) -> None:
            async with free:
                connection = await database.superuser()
                await connection.execute("SET evergreen.scope = '*'")
                laptops = []
                for _ in range(_DEVICES):
                    device = uuid4()
                    laptops.append(
                        Laptop(
                            tuple(
                                Device(kit, channel, device, org)
                                for kit, channel in zip(kits, channels, strict=True)
                            )
                        )
                    )
                admins = tuple(Admin(channel, org) for channel in channels)
                group = around.registry.group(org, "group", 1)
                keys = policy_pb2_grpc.PolicyKeyServiceStub(channels[0])
                own = await keys.CreatePolicyKey(
                    policy_pb2.CreatePolicyKeyRequest(activate=True), metadata=callers.user(org)
                )
                history = History(
                    org,
                    connection,
                    admins,
                    Random(number),
                    laptops,
                    around.registry,
                    group,
                    (("", first), (own.key_id, own.public_key_pem)),
                )
                try:
                    for _ in range(_STEPS):
                        await history.step()
                    await history.end()
                except (AssertionError, TimeoutError, grpc.aio.AioRpcError) as failed:
                    raise AssertionError(f"history {number}: {failed}") from failed
                finally:
                    await connection.close()
                counts.update(history.counts)

        async with asyncio.TaskGroup() as group:
            for number, org in enumerate(orgs):
                group.create_task(live(number, org.id))
        for channel in channels:
            await channel.close()
    # Each of them happened, or nothing was shown.
    assert counts["draw"], counts
    for name in ("layers", "move", "published_before", "restore", "rollback", "withdraw"):
        assert counts[name] > _HISTORIES / 8, (name, counts)
