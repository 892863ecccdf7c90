"""Contents, and the numbers that stand for them in an organisation.

A device compares numbers only. So each number of an organisation stands for one document, for ever,
and what a device is answered goes by the document that its number stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from servicekit.security.digests import sha256
from services.policy.keys.signing import Statement, envelope_head

_OVERHEAD: Final = 400
"""Bytes of an entry of the cache beside its text."""
BUCKETS: Final = 10_000
"""Into so many parts of the same size rollouts divide devices."""


class Content(NamedTuple):
    """Names a document: whose it is, and the SHA-256 of its bytes."""

    tenant_id: UUID
    digest: bytes


@dataclass(frozen=True, slots=True)
class Edition:
    """A content, and the numbers that stand for it in an organisation, ascending."""

    content: Content
    versions: tuple[int, ...]
    newest: int
    """The last one of them, which devices with another content get."""

    @classmethod
    def of(cls, content: Content, versions: tuple[int, ...]) -> Edition:
        """An edition with its numbers; there is at least one."""
        return cls(content, versions, versions[-1])


_SECRET: Final = re.compile(rb'"passphrase":"[^"]|"(?:eap|data|secrets)":\{[^}]').search
"""Within a text of a document these quotes are escaped."""

Targets: TypeAlias = tuple[UUID, ...]
"""The groups, and the device, whose policies count for a device; sorted."""


def bucket(salt: bytes, device_id: str) -> int:
    """Where a device is among `BUCKETS`, by its id alone; another salt mixes them anew."""
    return int.from_bytes(sha256(salt + device_id.encode())[:8], "big") % BUCKETS


@dataclass(frozen=True, slots=True)
class Rolling:
    """A version that comes to devices of an organisation in batches."""

    id: UUID
    policy_id: UUID
    version: int
    group_ids: tuple[UUID, ...]
    device_ids: tuple[UUID, ...]
    salt: bytes
    below: int
    """Devices in the buckets below are in open batches."""
    open_groups: frozenset[UUID]
    """So are devices in these groups."""
    serves: bool
    """Whether devices in open batches get it now."""
    holds: bool
    """Whether devices that have it keep it."""
    watches: bool = True
    """Whether anybody asks what devices have."""
    max_per_minute: int = 0
    """At most so many devices get it within a minute; 0 for as fast as they ask."""

    @property
    def targets(self) -> Targets:
        """The groups and devices that it is for; none for all devices."""
        return (*self.group_ids, *self.device_ids)

    def concerns(self, group_ids: Collection[UUID], device_id: UUID | None) -> bool:
        """Whether it is for devices in some groups, or for one with a policy of its own."""
        targets = self.targets
        return not targets or device_id in targets or any(one in targets for one in group_ids)

    def reaches(self, device_id: str, group_ids: Collection[UUID]) -> bool:
        """Whether a device that it is for is in an open batch."""
        return bucket(self.salt, device_id) < self.below or any(
            one in self.open_groups for one in group_ids
        )

    def meets(self, other: Rolling) -> bool:
        """Whether two are for the same: no device has both."""
        if not self.targets or not other.targets:
            return self.targets == other.targets
        return not set(self.targets).isdisjoint(other.targets)


@dataclass(frozen=True, slots=True)
class Stage:
    """What rollouts have to do with some devices."""

    watching: tuple[UUID, ...]
    """Those that are told what the devices have."""
    brings: tuple[UUID, ...]
    """Those whose versions are in what the devices are to have."""
    paced: Mapping[UUID, int] = field(default_factory=dict)
    """Of these, how many devices get it within a minute where that is bounded."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with an organisation, or with some of its devices."""

    want: Edition | None
    """What the devices are to have; `None` when nothing is in force."""
    last: int
    """The highest number of the organisation that stands for anything."""
    targets: Targets = ()
    """Whose policies make that, beside those of tenants."""
    recipe: str = ""
    """Of which versions it is made, where there are targets."""
    apart: UUID | None = None
    """The profile, where its numbers are its own."""
    keeps: frozenset[int] = frozenset()
    """Numbers of other contents that the devices may keep."""
    stage: Stage | None = None
    """What rollouts have to do with them; `None` for nothing, which is usual."""
    restricted: bool = False
    """Whether they fall short of an enforced gate: they get this and nothing else."""


NOTHING: Final = Standing(None, 0)
"""How it stands with an organisation that never had a policy."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A version that is in force for a group or a device."""

    target_id: UUID
    is_device: bool
    policy_id: UUID
    version: int


@dataclass(frozen=True, slots=True)
class Otherwise:
    """What devices get that fall short of an enforced attestation gate, in place of all policies of
    their organisation."""

    policy_id: UUID
    version: int


@dataclass(frozen=True)
class Known:
    """What is in force for a tenant."""

    assigned: tuple[UUID, int] | None = None
    """The policy and version for all of its devices."""
    recipe: str | None = None
    """Of which versions its edition was last made."""
    bound: tuple[Bound, ...] = ()
    """The weakest first."""
    profiles: Mapping[Targets, Standing] = field(default_factory=dict)
    """What was last made for some of its devices."""
    held: bool = False
    """Whether layers do not fit together for any of its devices."""
    rollouts: tuple[Rolling, ...] = ()
    """Those that deliveries look at, the oldest first."""
    order: Mapping[UUID, int] = field(default_factory=dict)
    """The place of each group and device that `bound` or a rollout names; the weakest is first."""
    gates: Mapping[UUID, Otherwise] = field(default_factory=dict)
    """Those that are enforced."""
    leaves: frozenset[str] = frozenset()
    """What the version in force leaves to tenants below, by the names of values."""
    values: Mapping[str, int] = field(default_factory=dict)
    """The values of its own, by what templates call them, each with a number that changes with it
    and never comes again."""

    @cached_property
    def place(self) -> Mapping[UUID, int]:
        """Where groups and devices stand in `bound`, by their ids."""
        return {one.target_id: at for at, one in enumerate(self.bound)}

    def gate_among(self, targets: Iterable[UUID]) -> UUID | None:
        """The enforced gate among some targets."""
        return next((one for one in targets if one in self.gates), None) if self.gates else None

    def bound_to(self, targets: Iterable[UUID]) -> list[Bound]:
        """What is to be had for some groups and devices, the weakest first.

        Args:
            targets: the groups and devices, and the rollouts whose versions count; or the gate
                that the devices fall short of.
        """
        wanted = set(targets)
        if (gate := self.gate_among(wanted)) is not None:
            other = self.gates[gate]
            return [Bound(gate, False, other.policy_id, other.version)]
        found = {one: self.bound[self.place[one]] for one in wanted if one in self.place}
        for one in self.rollouts:
            if one.id in wanted:
                for target in one.targets:
                    if target in wanted and target in self.order:
                        is_device = target in one.device_ids
                        found[target] = Bound(target, is_device, one.policy_id, one.version)
        return sorted(found.values(), key=lambda one: self.order.get(one.target_id, 0))

    def assigned_to(self, targets: Collection[UUID]) -> tuple[UUID, int] | None:
        """The policy and version for all devices, where some rollouts' versions count; not where a
        gate's does."""
        if self.gate_among(targets) is not None:
            return None
        for one in self.rollouts:
            if not one.targets and one.id in targets:
                return one.policy_id, one.version
        return self.assigned


class Part(NamedTuple):
    """A layer of what is put together."""

    whose: UUID
    policy_id: UUID
    version: int
    filled: str = ""
    """Tells which values of tenants below are in it; empty for none."""


def recipe_of(parts: Iterable[Part]) -> str:
    """The text that names what is put together: of each layer whose it is, policy and version."""
    return json.dumps(
        [
            [str(one.whose), str(one.policy_id), one.version, *([one.filled] if one.filled else ())]
            for one in parts
        ]
    )


def is_same(recipe: str, other: str) -> bool:
    """Whether two texts of `recipe_of` name the same, but for values of tenants below."""
    unfilled = [[part[:3] for part in json.loads(one)] if one else None for one in (recipe, other)]
    return unfilled[0] == unfilled[1]


def versions_of(recipe: str, whose: Set[UUID]) -> set[tuple[UUID, int]]:
    """The versions of some tenants and targets in what `recipe_of` wrote."""
    made = json.loads(recipe) if recipe else []
    return {(UUID(one), version) for one, _, version, *_ in made if UUID(one) in whose}


def is_made_of(recipe: str, whose: Set[UUID]) -> bool:
    """Whether what `recipe_of` names is of some tenants and targets alone."""
    made = json.loads(recipe) if recipe else []
    return bool(made) and all(UUID(one) in whose for one, *_ in made)


@dataclass(frozen=True, slots=True)
class Document:
    """The bytes that devices get, with their signature."""

    body: bytes = field(repr=False)
    signature: bytes
    key_id: str

    @property
    def size(self) -> int:
        """The memory that it takes, in bytes."""
        return len(self.body) + _OVERHEAD

    def holds_secrets(self) -> bool:
        """Whether it has a passphrase, or what a network or VPN logs in with."""
        return _SECRET(self.body) is not None

    def envelope(self, version: int, device_token: str | None = None) -> bytes:
        """The released agent's ENVELOPE, with a new token for one device where there is one."""
        head = envelope_head(str(version), self.signature, self.body)
        if device_token is None:
            return head + b"}"
        return head + b',"device_token":' + json.dumps(device_token).encode() + b"}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature over a document, with another key than the stored one."""

    value: bytes

    @property
    def size(self) -> int:
        """The memory that it takes, in bytes."""
        return len(self.value) + _OVERHEAD


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is signed beside the document: what the number stands for, for gRPC."""

    content: Content
    key_id: str
    statement_head: bytes = field(repr=False)
    """The statement's payload without the document and the last brace."""
    statement_signature: bytes
    shared: bool = True
    """Whether any device of the organisation may be given the document again."""

    @property
    def size(self) -> int:
        """The memory that it takes, in bytes."""
        return len(self.statement_head) + _OVERHEAD

    @classmethod
    def of(
        cls, content: Content, statement: Statement, body: bytes, *, shared: bool = True
    ) -> Stamp:
        """What there is to store of a statement; its payload ends with the document."""
        head = statement.payload[: -len(body) - 1]
        return cls(content, statement.key_id, head, statement.signature, shared)

    def statement(self, body: bytes) -> Statement:
        """The whole statement, with the document."""
        payload = self.statement_head + body + b"}"
        return Statement(payload, self.statement_signature, self.key_id)


@dataclass(frozen=True, slots=True)
class Bundle:
    """What devices get: a document under a number."""

    version: int
    document: Document
    stamp: Stamp
    sign_again: Callable[[Statement], Statement] | None = None
    """Signs for devices that pin another key than the one of what is stored."""

    def envelope(self, device_token: str | None = None) -> bytes:
        """The released agent's ENVELOPE, with a new token for one device where there is one."""
        return self.document.envelope(self.version, device_token)

    def statement(self) -> Statement:
        """What is signed over the number, too."""
        statement = self.stamp.statement(self.document.body)
        return statement if self.sign_again is None else self.sign_again(statement)
