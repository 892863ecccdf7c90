"""What typed events are made of, and how their members are named in JSON.

An event is a frozen dataclass. Its docstring, its members and their types are what integrators
read: the JSON Schemas (`tools.asyncapi.schema`) and the JSON that is sent
(`servicekit.messaging.encoding`) are both made from them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    Self,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

JsonText = NewType("JsonText", str)
"""JSON that is sent exactly as it came."""


Outcome = Literal["success", "refused", "failed"]
"""How an action went."""


@dataclass(frozen=True, slots=True)
class Since:
    """Marks a member that a release added: events of earlier releases need not have it."""

    release: str


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Marks a sequence that is never shorter."""

    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. The docstring of a subclass says what."""

    NAME: ClassVar[str]
    """`<context>.<what_happened>`; it never changes."""

    @classmethod
    def context(cls) -> str:
        """The service that sends it."""
        return cls.NAME.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action(Event):
    """An event of an outbox, which the audit log records.

    A subclass may have two more members, `before` and `after`: what it happened to, as it was and
    as it is. Without them they are null in JSON. Their types name every member that is sent, so
    that a secret cannot get in by accident.
    """

    RESOURCE: ClassVar[str]
    """What it happened to, with `{id}` for its id."""
    OUTCOME: ClassVar[Outcome] = "success"
    """How it went. Where it is another one, the reason is a member `reason` of `after`."""
    id: UUID

    @property
    def resource(self) -> str:
        """What it happened to."""
        return self.RESOURCE.replace("{id}", str(self.id))

    @property
    def related(self) -> Sequence[str]:
        """What else it concerns, by the names of resources."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was asked for."""

    format: str
    filter: Annotated[Mapping[str, object], "The filters that were given."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedKey:
    """The key that signed before."""

    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NextKey:
    """The next key: what it signs, and from when on."""

    key_id: str
    purpose: str
    algorithm: str
    signs_from: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotation(Action):
    """The next key of a service was made."""

    RESOURCE: ClassVar[str] = "key-rotations/{id}"
    before: ReplacedKey
    after: NextKey

    @classmethod
    def example(cls, purpose: str) -> Self:
        """One of these."""
        return cls(
            id=ID,
            before=ReplacedKey(key_id="poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U"),
            after=NextKey(
                key_id="kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
                purpose=purpose,
                algorithm="ed25519",
                signs_from=AT,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefusals:
    """What was called, why it was refused, and how often within some seconds."""

    rpc: Annotated[str, "`<Service>/<Method>`."]
    reason: Literal["ROLE_MAY_NOT", "FOREIGN_TENANT"]
    count: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsRefused(Action):
    """Calls of a user were refused: the role may not, or the tenant that they name is not below."""

    RESOURCE: ClassVar[str] = "users/{id}/calls"
    OUTCOME: ClassVar[Outcome] = "refused"
    after: CallRefusals

    @classmethod
    def example(cls, rpc: str) -> Self:
        """One of these."""
        after = CallRefusals(rpc=rpc, reason="ROLE_MAY_NOT", count=3, first=AT, last=AT)
        return cls(id=ID, after=after)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an event or of a part of one."""

    attribute: str
    """Its name in Python."""
    name: str
    """Its name in JSON."""
    type: Any
    """The type, without annotations."""
    about: str
    """Its description; may be empty."""
    required: bool
    """Whether it is in every event, of whatever release."""
    at_least: int
    """The least length of a sequence."""


def resources(kind: str, ids: Iterable[UUID | None]) -> list[str]:
    """The names of resources of a kind, each once."""
    return [f"{kind}/{one}" for one in dict.fromkeys(ids) if one is not None]


def members_of(part: type) -> Sequence[Member]:
    """The members of a dataclass, in the order of the JSON.

    A member's type is annotated with its description and with `Since`, as far as it has them:
    `Annotated[str, "The id that the device gave it."]`.
    """
    hints = get_type_hints(part, include_extras=True)
    return [_member(field.name, hints[field.name]) for field in dataclasses.fields(part)]


def summary_of(part: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(part) or "").partition("\n\n")[0].split())


def description_of(part: type) -> str:
    """The whole docstring of a class, in one line."""
    return " ".join((inspect.getdoc(part) or "").split())


def _member(attribute: str, hint: Any) -> Member:
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        notes = tuple(rest)
    first, *others = attribute.split("_")
    return Member(
        attribute=attribute,
        name=first + "".join(word.capitalize() for word in others),
        type=hint,
        about=" ".join(note for note in notes if isinstance(note, str)),
        required=not any(isinstance(note, Since) for note in notes),
        at_least=max((note.length for note in notes if isinstance(note, AtLeast)), default=0),
    )


# What the examples share.
ID: Final = UUID("01936d2e-9c14-7a02-8b77-51d2c3e4f506")
"""Of what it happened to."""
TENANT_ID: Final = UUID("01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01")
AT: Final = datetime(2026, 9, 1, 7, 58, 3, tzinfo=UTC)
EMAIL: Final = "admin@school.example"
