"""Domain events: facts of the past, as CloudEvents 1.0.

An event is what integrators receive and what the audit log records; both come from the same
row of the outbox, which commits with the change itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from servicekit.call import Call, CallerKind, current_call
from servicekit.ids import new_id, now
from servicekit.streams import SUBJECT_ROOT


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    `name` is `<context>.<what_happened>`, for example `policy.published`, and is in the catalogue
    (`servicekit.catalogue`) with what `before` and `after` hold; `resource` is what it happened to,
    for example `policies/<id>`. `before` and `after` must not hold secrets.
    """

    name: str
    tenant_id: UUID
    resource: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
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
        return f"{SUBJECT_ROOT}.{self.tenant_id}.{self.name}"

    def payload(self) -> str:
        """The CloudEvent in JSON, with the actor of its call unless one is named."""
        call = self.call
        caller = call.caller
        actor = self.actor or ("system" if caller.kind is CallerKind.SERVICE else caller.name)
        return json.dumps(
            {
                "specversion": "1.0",
                "id": str(self.id),
                "source": f"/evergreen/{self.name.partition('.')[0]}",
                "type": f"{SUBJECT_ROOT}.{self.name}",
                "subject": self.resource,
                "time": self.occurred_at.isoformat().replace("+00:00", "Z"),
                "datacontenttype": "application/json",
                "tenantid": str(self.tenant_id),
                "data": {
                    "action": self.name,
                    "resource": self.resource,
                    "actor": actor,
                    "actorId": self.actor_id or caller.id,
                    "actorRole": self.actor_role or (caller.role.value if caller.role else ""),
                    "sourceIp": call.source_ip,
                    "requestId": call.request_id,
                    "before": self.before,
                    "after": self.after,
                },
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )
