"""What happens in random histories of organisations, and what has to be true of it all the time."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from random import Random
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import grpc
import httpx

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from services.policy import restore
from services.policy.authoring.document import parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.restore import Known
from services.policy.stamps.domain import bucket
from tests.support import callers
from tests.support.neighbours import FakeAttestation
from tests.support.patient import patiently
from tests.support.policy import Admin, Device, FakeRegistry, verified
from tests.support.refusals import refused_with
from tests.support.stack import PATIENCE

LAG: Final = 0.1
"""So many seconds a process lags behind."""
_QUIET: Final = 5
"""So many times in a row polls bring nothing to devices that have all."""
_TABLES: Final = (
    "variable",
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
    "rollout",
    "rollout_device",
    "attestation_gate",
    "gate",
    "restricted_device",
)
_CONTENTS: Final[list[dict[str, Any]]] = [
    {"security": {"selinux_enforce": True}},
    {
        "template": {
            "browser": {"homepage": "https://{{var.host}}"},
            "network": {
                "wifi": [{"ssid": "Pupils", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"}]
            },
        }
    },
    {"updates": {"channel": "beta"}, "security": {"selinux_enforce": True}},
]
_VALUES: Final = {
    "host": ("one.example", "two.example", "three.example"),
    "wifi": ("the first passphrase", "the second one", "the third one"),
}
"""What is named in a template."""
_OF_GROUP: Final = ("https://first.example", "https://second.example")
"""What the group's policy says, and no other one says."""
_OF_GATE: Final = {"browser": {"homepage": "https://restricted.example"}}
_ROLLED_OUT: Final = (
    "EXISTS (SELECT FROM policy.rollout r WHERE r.tenant_id = v.tenant_id"
    " AND r.version = v.version AND r.state <> 'COMPLETED')"
)
"""A version `v` was never in force for all of its devices."""
_STATE: Final = """
SELECT
    (SELECT version FROM policy.assignments WHERE tenant_id = $1) AS of_all,
    (SELECT version FROM policy.bindings WHERE tenant_id = $1 AND target_id = $2) AS of_group,
    (SELECT e.otherwise_version FROM policy.restricted_device r
        JOIN policy.gate e ON e.id = r.gate_id AND e.mode = 'ENFORCE'
        WHERE r.tenant_id = $1 AND r.device_id = $3) AS of_gate,
    (SELECT coalesce(json_agg(json_build_object('version', version, 'salt', encode(salt, 'hex'),
            'below', below, 'serves', serves, 'for_group', group_ids <> '{}') ORDER BY id), '[]')
        FROM policy.rollout WHERE tenant_id = $1 AND live AND (serves OR holds)) AS rollouts
"""
"""What counts for a device."""
_AT_LEAST: Final = "KNOWN_TPM"
_SHORT: Final = ("FAILED", "SELF_CONSISTENT")
_ENOUGH: Final = ("KNOWN_TPM", "VERIFIED")
_REFUSED: Final = {
    "NEVER_IN_FORCE",
    "NOTHING_TO_SERVE",
    "ROLLOUT_RUNNING",
    "ROLLOUT_STATE",
    "TOO_MANY_ROLLOUTS",
}
"""Why an admin may have to do without."""


@dataclass
class Laptop:
    """A device of a history, with what it has."""

    calls: tuple[Device, ...]
    """By each process."""
    old_calls: tuple[Device, ...]
    """The same with a token that is to be replaced: then more is answered than what is new."""
    has: int = 0
    content: str = ""
    in_group: bool = False
    was_in_group: bool = False
    was_short: bool = False
    """Whether it ever fell short of what the gate asks for."""
    key: int = 0
    """Which of the organisation's keys it pins."""
    verdict: str = ""
    """What attestation told of it; empty for nothing."""

    @property
    def id(self) -> UUID:
        return self.calls[0].id


@dataclass(frozen=True)
class Expected:
    """What a device is to have; `None` for nothing."""

    want: str | None
    plain: str | None = None
    """Without rollouts: what it may get while they are not put together."""
    keeps: frozenset[str | None] = frozenset()
    """What it may keep, of rollouts that are not at their end."""
    is_restricted: bool = False

    @property
    def brings(self) -> set[str | None]:
        """What it may get."""
        return {self.want} if self.is_restricted else {self.want, self.plain}

    def kinds(self, content: str) -> dict[str, bool]:
        """What a delivery shows."""
        return {
            "restricted": self.is_restricted and content == self.want,
            "staged": content == self.want != self.plain and not self.is_restricted,
            "named value": any(one in content for one in _VALUES["wifi"]),
        }


@dataclass
class History:
    """One organisation, and what has to be true of it."""

    org: UUID
    connection: Any
    channels: tuple[grpc.aio.Channel, ...]
    """To each process."""
    random: Random
    laptops: list[Laptop]
    registry: FakeRegistry
    attestation: FakeAttestation
    group: UUID
    keys: list[tuple[str, str]]
    """The first key of all, and then those of the organisation: their ids, and in PEM."""
    policies: list[str] = field(default_factory=list)
    of_group: list[str] = field(default_factory=list)
    stood: dict[int, str] = field(default_factory=dict)
    """What each number stood for."""
    backup: dict[str, list[str]] | None = None
    restored: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    steps: list[str] = field(default_factory=list)
    documents: dict[int, str] = field(default_factory=dict)
    """What versions say; none is ever another one."""
    other: str = ""
    """The policy that devices get that fall short."""
    variables: dict[str, str] = field(default_factory=dict)
    """Names → ids."""

    async def begin(self) -> None:
        """What every history has from the beginning."""
        await self.rotate_key()
        stub = policy_pb2_grpc.PolicyVariableServiceStub(self.channels[0])
        for name, values in _VALUES.items():
            made = await stub.CreatePolicyVariable(
                policy_pb2.CreatePolicyVariableRequest(
                    org_id=str(self.org), name=name, value=values[0], secret=name == "wifi"
                ),
                metadata=self.admin.metadata,
            )
            self.variables[name] = made.id
        nobody = self.registry.group(self.org, "nobody", 2)
        self.other = await self.created(_OF_GATE, nobody)
        await self.admin.call("PublishPolicy", id=self.other)
        await self.publish()
        for laptop in self.laptops:
            self.register(laptop)

    async def step(self) -> None:
        """Something that an admin, a device or an operator does now."""
        steps = {
            "publish": 2,
            "rollback": 1,
            "withdraw": 1,
            "move": 12,
            "published_before": 1,
            "publish_for_group": 1,
            "withdraw_from_group": 1,
            "join_or_leave": 4,
            "enroll_again": 1,
            "rotate_key": 1,
            "change_value": 3,
            "change_default_plan": 1,
            "roll_out": 5,
            "steer": 4,
            "tell_verdict": 4,
            "enforce": 2,
            "end_gate": 1,
            "back_up": 1,
            "restore": 1,
            "poll": 30,
            "lie": 3,
        }
        name = self.random.choices(list(steps), list(steps.values()))[0]
        self.counts[name] += 1
        self.steps.append(name)
        await getattr(self, name)()

    @property
    def admin(self) -> Admin:
        """An administrator, by any of the processes, who has just logged in."""
        found = Admin(self.random.choice(self.channels), self.org)
        found.metadata = (*found.metadata, (H_AUTHENTICATED, str(int(time.time()))))
        return found

    async def created(self, bundle: Any, *groups: UUID) -> str:
        """A policy for some groups; for all devices without any."""
        targets = policy_pb2.PolicyTargetsChange(group_ids=map(str, groups))
        made = await self.admin.call(
            "CreatePolicy", org_id=str(self.org), name="x", bundle=bundle, targets=targets
        )
        return str(made.id)

    async def tried(self, name: str, call: Awaitable[Any]) -> None:
        """A call that the service may refuse, for a reason that is known."""
        try:
            await call
            self.counts[name] += 1
        except grpc.aio.AioRpcError as error:
            reason = refused_with(error).reason
            assert reason in _REFUSED, reason

    async def publish(self) -> None:
        """A policy, as it was or for the first time."""
        if len(self.policies) < len(_CONTENTS):
            self.policies.append(await self.created(_CONTENTS[len(self.policies)]))
        published = self.admin.call("PublishPolicy", id=self.random.choice(self.policies))
        await self.tried("published", published)

    async def rollback(self) -> None:
        """Any version of any policy."""
        rows = await self.connection.fetch(
            "SELECT v.policy_id, v.version FROM policy.versions v JOIN policy.policies p"
            " ON p.id = v.policy_id WHERE v.tenant_id = $1",
            self.org,
        )
        if rows:
            policy_id, version = self.random.choice(rows)
            back = self.admin.call("RollbackPolicy", id=str(policy_id), version=str(version))
            await self.tried("rolled_back", back)

    async def withdraw(self) -> None:
        """Leaves nothing in force."""
        if self.policies:
            await self.admin.call("WithdrawPolicy", id=self.random.choice(self.policies))

    async def publish_for_group(self) -> None:
        """One of two policies, as it was or for the first time."""
        if len(self.of_group) < len(_OF_GROUP):
            bundle = {"browser": {"homepage": _OF_GROUP[len(self.of_group)]}}
            self.of_group.append(await self.created(bundle, self.group))
        published = self.admin.call("PublishPolicy", id=self.random.choice(self.of_group))
        await self.tried("published", published)

    async def withdraw_from_group(self) -> None:
        """Leaves nothing in force for the group, or what is."""
        if self.of_group:
            await self.admin.call("WithdrawPolicy", id=self.random.choice(self.of_group))

    async def join_or_leave(self) -> None:
        """A device, and every process knows it when it looks."""
        laptop = self.random.choice(self.laptops)
        laptop.in_group = not laptop.in_group
        laptop.was_in_group |= laptop.in_group
        self.register(laptop)

    async def enroll_again(self) -> None:
        """A device, which goes on with another key and what it has: both are in its start file."""
        laptop = self.random.choice(self.laptops)
        others = [one for one in range(len(self.keys)) if one != laptop.key]
        laptop.key = self.random.choice(others)
        self.register(laptop)

    async def rotate_key(self) -> None:
        """The organisation's key, once; devices that pin the one before go on."""
        if len(self.keys) > 2:
            return
        stub = policy_pb2_grpc.PolicyKeyServiceStub(self.random.choice(self.channels))
        own = await stub.CreatePolicyKey(
            policy_pb2.CreatePolicyKeyRequest(activate=True), metadata=callers.user(self.org)
        )
        self.keys.append((own.key_id, own.public_key_pem))

    async def change_value(self) -> None:
        """Of a variable or a secret, for what is in force or for the next publish."""
        name = self.random.choice([*_VALUES])
        stub = policy_pb2_grpc.PolicyVariableServiceStub(self.random.choice(self.channels))
        change = policy_pb2.UpdatePolicyVariableRequest(
            id=self.variables[name],
            value=self.random.choice(_VALUES[name]),
            apply=self.random.choice(["NOW", "NEXT_PUBLISH"]),
        )
        await self.tried(
            "changed_value", stub.UpdatePolicyVariable(change, metadata=self.admin.metadata)
        )

    async def change_default_plan(self, *, to_none: bool = False) -> None:
        """What is published without a plan comes in batches from now on, or at once."""
        half = policy_pb2.RolloutPlan(
            batches=[policy_pb2.RolloutBatch(percent=50, soak="1d")], max_per_minute=100
        )
        plan = None if to_none else self.random.choice([None, half])
        stub = policy_pb2_grpc.PolicyRolloutServiceStub(self.random.choice(self.channels))
        await stub.UpdatePolicySettings(
            policy_pb2.UpdatePolicySettingsRequest(
                org_id=str(self.org), default_plan=policy_pb2.DefaultPlanChange(plan=plan)
            ),
            metadata=self.admin.metadata,
        )

    async def roll_out(self) -> None:
        """A policy for all devices, or one for those of the group, to half of them first."""
        policies = [*self.policies, *self.of_group]
        if policies:
            half = policy_pb2.RolloutBatch(percent=50, soak="1d")
            begun = self.admin.call(
                "PublishPolicy",
                id=self.random.choice(policies),
                plan=policy_pb2.RolloutPlan(batches=[half]),
                supersede=True,
            )
            await self.tried("rolled_out", begun)
            # It takes a moment until it is put together.
            await asyncio.sleep(3 * LAG)
            for laptop in self.laptops:
                await self.answered(laptop)

    async def steer(self) -> None:
        """A rollout that is not at its end."""
        found = await self.connection.fetchval(
            "SELECT id FROM policy.rollout WHERE tenant_id = $1 AND ended_at IS NULL"
            " ORDER BY id DESC LIMIT 1",
            self.org,
        )
        if found is None:
            return
        verbs = ("Pause", "Resume", "Advance", "Advance", "Cancel", "RollBack")
        verb = self.random.choice(verbs)
        stub = policy_pb2_grpc.PolicyRolloutServiceStub(self.random.choice(self.channels))
        request = getattr(policy_pb2, f"{verb}RolloutRequest")(id=str(found), reason="Because")
        steered = getattr(stub, f"{verb}Rollout")(request, metadata=self.admin.metadata)
        await self.tried("steered", steered)

    async def tell_verdict(self) -> None:
        """Of a device's boot, and the gate has it another policy soon."""
        laptop = self.random.choice(self.laptops)
        laptop.verdict = self.random.choice(_SHORT + _ENOUGH)
        laptop.was_short |= laptop.verdict in _SHORT
        self.attestation.tell(laptop.id, laptop.verdict, self.org)

    async def enforce(self) -> None:
        """The gate of all devices, by what a preview says now."""
        short = sum(one.verdict in _SHORT for one in self.laptops)
        async with asyncio.timeout(PATIENCE):
            while True:
                seen = await self.admin.call(
                    "PreviewAttestationGate", at_least=_AT_LEAST, grace_hours=0
                )
                if (seen.devices_in_use, seen.falling_short) == (len(self.laptops), short):
                    break
                await asyncio.sleep(LAG)
        await self.admin.call(
            "UpdateAttestationGate",
            mode="ENFORCE",
            at_least=_AT_LEAST,
            grace_hours=0,
            otherwise_policy_id=self.other,
            max_percent=100,
            expected_devices=short,
        )

    async def end_gate(self) -> None:
        """Every device has its own policy again."""
        mode = self.random.choice(["OFF", "OBSERVE"])
        await self.admin.call("UpdateAttestationGate", mode=mode)

    def register(self, laptop: Laptop) -> None:
        """Lets the registry tell of a device."""
        groups = [self.group] if laptop.in_group else []
        key_id, _ = self.keys[laptop.key]
        self.registry.put(laptop.id, self.org, *groups, key_id=key_id)

    async def move(self) -> None:
        """Brings back what an older number stands for, as a change of groups does."""
        await self.connection.execute(
            "UPDATE policy.assignments a SET policy_id = v.policy_id, version = v.version,"
            " changed_xid = pg_current_xact_id() FROM policy.versions v"
            " WHERE a.tenant_id = $1 AND v.tenant_id = $1 AND v.version ="
            " (SELECT v.version FROM policy.versions v WHERE v.tenant_id = $1"
            f" AND v.targets IS NULL AND NOT {_ROLLED_OUT}"
            " ORDER BY hashtext(v.version::text || $2) LIMIT 1)",
            self.org,
            str(self.random.random()),
        )
        if self.random.random() < 0.8:
            await asyncio.sleep(3 * LAG)
            await self.poll()

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
                # It knows no templates.
                f" AND v.authored NOT LIKE '%{{{{%' AND NOT {_ROLLED_OUT}"
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
        if not self.policies or not self.of_group:
            return
        # One moment of all tables, as a real backup has it: the processes go on meanwhile.
        async with self.connection.transaction(isolation="repeatable_read", readonly=True):
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
        try:
            await self._restore(self.backup)
        except asyncpg.DeadlockDetectedError:
            # In life no service runs meanwhile.
            return
        self.restored = True
        there = {json.loads(row)["id"] for row in self.backup["policies"]}
        self.policies = [one for one in self.policies if one in there]
        self.of_group = [one for one in self.of_group if one in there]

    async def _restore(self, backup: dict[str, list[str]]) -> None:
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
                    f"[{','.join(backup[table])}]",
                )
            # The processes go on, which begin anew in life: they have to hear what is not there.
            await self.connection.execute(
                "INSERT INTO policy.restricted_device (device_id, tenant_id, since)"
                " SELECT id, $1, now() FROM unnest($2::uuid[]) AS id ON CONFLICT DO NOTHING",
                self.org,
                [laptop.id for laptop in self.laptops],
            )
            # It repairs what it sees; the other histories go on.
            await self.connection.execute(
                f"SET LOCAL ROLE evergreen_policy; SET LOCAL evergreen.scope = '{self.org}'"
            )
            await restore.repair(self.connection, known, [self.org])

    async def poll(self) -> None:
        """A device, by one process; some answers are lost on their way."""
        laptop = self.random.choice(self.laptops)
        await self.answered(laptop, lost=self.random.random() < 0.2)

    async def lie(self) -> None:
        """A device names a number that it may never have had, and gets nothing that was never for
        it."""
        laptop = self.random.choice(self.laptops)
        last = await self.connection.fetchval(
            "SELECT last_version FROM policy.version_counters WHERE tenant_id = $1", self.org
        )
        named = self.random.randint(1, last + 2)
        call = self.random.choice(laptop.old_calls)
        answer = await patiently(lambda: call.pull(str(named)))
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return
        assert answer.status_code == httpx.codes.OK, answer.text
        verified(self.keys[laptop.key][1], answer)
        envelope = answer.json()
        version, content = int(envelope["version"]), json.dumps(envelope["policy"])
        assert version >= named
        assert self.stood.setdefault(version, content) == content
        assert laptop.was_in_group or not any(page in content for page in _OF_GROUP)
        assert laptop.was_short or _OF_GATE["browser"]["homepage"] not in content
        self.counts["answered lie"] += 1

    async def answered(self, laptop: Laptop, *, lost: bool = False) -> bool:
        """Whether a device got something, which has to be right."""
        before = await self.expected(laptop)
        call = self.random.choice(laptop.calls)
        answer = await patiently(lambda: call.pull(str(laptop.has or "")))
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return False
        assert answer.status_code == httpx.codes.OK, answer.text
        # By the key that it pins, whatever else happened.
        verified(self.keys[laptop.key][1], answer)
        envelope = answer.json()
        version, content = int(envelope["version"]), json.dumps(envelope["policy"])
        assert version > laptop.has
        assert self.stood.setdefault(version, content) == content
        # Never what was replaced: only the gate moves devices meanwhile, and rollouts stop.
        after = await self.expected(laptop)
        assert content in before.brings | after.brings
        cause = await self.connection.fetchval(
            "SELECT cause FROM policy.stamps WHERE tenant_id = $1 AND version = $2",
            self.org,
            version,
        )
        self.counts[cause] += 1
        for kind, is_so in after.kinds(content).items():
            self.counts[kind] += is_so
        if not lost:
            laptop.has, laptop.content = version, content
        return True

    async def expected(self, laptop: Laptop) -> Expected:
        """What a device is to have, as of one moment."""
        row = await self.connection.fetchrow(_STATE, self.org, self.group, laptop.id)
        if row["of_gate"] is not None:
            return Expected(await self._document(row["of_gate"]), is_restricted=True)
        of_all, of_group = row["of_all"], row["of_group"] if laptop.in_group else None
        plain = await self._folded(of_all, of_group)
        keeps = {True: {of_group}, False: {of_all}}
        for one in json.loads(row["rollouts"]):
            if one["for_group"] and not laptop.in_group:
                continue
            reached = bucket(bytes.fromhex(one["salt"]), str(laptop.id)) < one["below"]
            if not one["serves"] or not reached:
                keeps[one["for_group"]].add(one["version"])
            elif one["for_group"]:
                of_group = one["version"]
            else:
                of_all = one["version"]
        if of_all != row["of_all"]:
            keeps[False] = {of_all}
        if laptop.in_group and of_group != row["of_group"]:
            keeps[True] = {of_group}
        return Expected(
            await self._folded(of_all, of_group),
            plain,
            frozenset([await self._folded(*some) for some in product(keeps[False], keeps[True])]),
        )

    async def _folded(self, of_all: int | None, of_group: int | None) -> str | None:
        document = None if of_all is None else await self._document(of_all)
        if of_group is None:
            return document
        found = json.loads(document or encode_document(parse_document({})))
        group = json.loads(await self._document(of_group))
        found["browser"]["homepage"] = group["browser"]["homepage"]
        return json.dumps(found)

    async def _document(self, version: int) -> str:
        if version not in self.documents:
            found = await self.connection.fetchval(
                "SELECT convert_from(document, 'UTF8') FROM policy.versions"
                " WHERE tenant_id = $1 AND version = $2",
                self.org,
                version,
            )
            self.documents[version] = json.dumps(json.loads(found))
        return self.documents[version]

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
        """Every device comes to what it is to have, and is left alone then: first with what was
        begun, and then with what is published for all."""
        await self.gate_settles()
        if await self.knows_all():
            await self.converge()
        await self.change_default_plan(to_none=True)
        await self.publish()
        if self.of_group:
            await self.publish_for_group()
        await self.converge(at_last=True)

    async def gate_settles(self) -> None:
        """Exactly the devices that fall short have the gate's policy."""
        mode = (await self.admin.call("GetAttestationGate")).mode
        if mode == "ENFORCE":
            # A restore holds it until somebody looks.
            await self.enforce()
        short = {one.id for one in self.laptops if one.verdict in _SHORT and mode == "ENFORCE"}
        async with asyncio.timeout(PATIENCE):
            while True:
                found = [one for one in self.laptops if (await self.expected(one)).is_restricted]
                if {one.id for one in found} == short:
                    return
                await asyncio.sleep(LAG)

    async def converge(self, *, at_last: bool = False) -> None:
        """Waits until nobody gets anything more.

        Args:
            at_last: no device keeps anything else than what it is to have.
        """
        async with asyncio.timeout(PATIENCE):
            # What is being put together is answered like what has not changed, for a moment.
            quiet = 0
            while quiet < _QUIET or not await self.have_all(at_last=at_last):
                got = [await self.answered(laptop) for laptop in self.laptops]
                quiet = 0 if any(got) else quiet + 1
                await asyncio.sleep(2 * LAG)
        for laptop in self.laptops:
            for call in laptop.calls:
                answer = await patiently(partial(call.pull, str(laptop.has)))
                assert answer.status_code == httpx.codes.NOT_MODIFIED

    async def have_all(self, *, at_last: bool) -> bool:
        for laptop in self.laptops:
            expected = await self.expected(laptop)
            # Where nothing is in force, it keeps what it has.
            if not at_last and expected.want is None:
                continue
            if laptop.content != expected.want and (
                at_last or laptop.content not in expected.keeps
            ):
                return False
        return True
