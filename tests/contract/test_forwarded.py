"""What receivers of the audit log are told of each event."""

from __future__ import annotations

from contract.events import EXAMPLES
from contract.events.base import Action
from services.audit.forward.ocsf import CLASSES


def test_every_action_has_a_class_of_ocsf() -> None:
    """A new one needs a row in services/audit/forward/ocsf.py."""
    actions = {name for name, example in EXAMPLES.items() if isinstance(example, Action)}
    assert actions <= set(CLASSES)
