"""Domain events: facts of the past, as CloudEvents 1.0.

An event is what integrators receive and what the audit log records; both come from the same
row of the outbox, which commits with the change itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.base import Action
from contract.subjects import SUBJECT_ROOT
from servicekit.call import Call, CallerKind, current_call
from servicekit.ids import new_id, now
from servicekit.messaging.encoding import name_of, quoted, reason_of, sides
from servicekit.times import format_rfc3339

_MOST_OF_AN_AGENT: Final = 256


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event of `contract.events`, with where it happened and who made it happen."""

    event: Action
    tenant_id: UUID
    actor: str = ""
    actor_id: str = ""
    actor_role: str = ""
    call: Call = field(default_factory=current_call.get)
    """The call that made it happen: the one that is being served, or, for work that is done for
    several calls at once, the one it was done for."""
    id: UUID = field(default_factory=new_id)
    occurred_at: datetime = field(default_factory=now)

    @property
    def subject(self) -> str:
        """The NATS subject: `evergreen.v1.<tenant>.<context>.<what_happened>`."""
        return f"{SUBJECT_ROOT}.{self.tenant_id}.{self.event.NAME}"

    def payload(self) -> str:
        """The CloudEvent in JSON, with the actor of its call unless one is named."""
        event, call = self.event, self.call
        caller = call.caller
        actor = self.actor or ("system" if caller.kind is CallerKind.SERVICE else caller.name)
        role = self.actor_role or (caller.role.value if caller.role else "")
        resource = quoted(event.resource)
        before, after = sides(event)
        return (
            f'{{"specversion":"1.0","id":"{self.id}","source":"/evergreen/{event.context()}"'
            f',"type":"{SUBJECT_ROOT}.{event.NAME}","subject":{resource}'
            f',"time":"{format_rfc3339(self.occurred_at)}","datacontenttype":"application/json"'
            f',"tenantid":"{self.tenant_id}","data":{{"action":"{event.NAME}"'
            f',"resource":{resource},"actor":{quoted(actor)}'
            f',"actorId":{quoted(self.actor_id or caller.id)},"actorRole":{quoted(role)}'
            f',"sourceIp":{quoted(call.source_ip)},"requestId":{quoted(call.request_id)}'
            f',"before":{before},"after":{after},"outcome":"{event.OUTCOME}"'
            f',"reason":{quoted(reason_of(event))},"resourceName":{quoted(name_of(event))}'
            f',"actorKind":"{_kind_of(actor)}","sessionId":{quoted(caller.session_id)}'
            f',"userAgent":{quoted(_shown(call.user_agent))}{_related(event)}}}}}'
        )


def _kind_of(actor: str) -> str:
    """What kind of party an actor is, by the form of its name."""
    if actor.startswith("device:"):
        return "device"
    if actor == CallerKind.ANONYMOUS.value:
        return "anonymous"
    if actor.startswith("token:"):
        return "service"
    return "user" if "@" in actor else "system"


def _related(event: Action) -> str:
    """What else an event concerns, as a member; nothing, where it is nothing."""
    found = event.related
    return f',"related":[{",".join(map(quoted, found))}]' if found else ""


def _shown(user_agent: str) -> str:
    """What a program says of itself, without what could control a terminal."""
    if user_agent.isprintable():
        return user_agent[:_MOST_OF_AN_AGENT]
    return "".join(filter(str.isprintable, user_agent))[:_MOST_OF_AN_AGENT]
