"""What must be different in a database that went back in time, and the order of the changes.

Each context repairs its own rows (`services/<context>/restore.py`): identity first, for the
others go by its tenants, and audit last, which records the restore.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from uuid import UUID

from cli.backup.archive import Header
from cli.backup.facts import Facts
from servicekit.data.backup import Connection
from services.attestation import restore as attestation
from services.audit import restore as audit
from services.enrollment import restore as enrollment
from services.identity import restore as identity
from services.policy import restore as policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a restore did beside copying."""

    header: Header
    logins: identity.Repaired
    devices: enrollment.Repaired
    redactions: audit.Again = audit.Again()  # noqa: RUF009 - it is frozen


async def apply(connection: Connection, header: Header, facts: Facts) -> Outcome:
    """Makes the changes; the transaction sees all rows."""
    logins = await identity.repair(connection, facts.identity)
    await policy.repair(connection, facts.policy, logins.tenants.organisations)
    devices = await enrollment.repair(connection, facts.enrollment, logins.tenants)
    await attestation.repair(connection, facts.attestation)
    restored = audit.RestoredFrom(UUID(header.id), header.point, header.release, getpass.getuser())
    await audit.repair(connection, facts.audit, restored)
    return Outcome(header, logins, devices)
