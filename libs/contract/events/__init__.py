"""Every event that the product sends: a type for each, by context, with an example.

An outbox takes no other ones. The streams' subjects and the AsyncAPI document are made from them
(`tools.asyncapi`), and the tests hold what is really sent against it. Additions to an event are no
breaking change: subscribers ignore members that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from contract.events import attestation, audit, enrollment, identity, policy, telemetry
from contract.events.base import Event

_CONTEXTS: Final = (identity, enrollment, policy, telemetry, attestation, audit)

EXAMPLES: Final[Mapping[str, Event]] = {
    example.NAME: example for context in _CONTEXTS for example in context.EXAMPLES
}
"""An example of every event, by the event's name."""
EVENT_TYPES: Final[Mapping[str, type[Event]]] = {
    name: type(example) for name, example in EXAMPLES.items()
}
"""Every event's type, by its name."""
