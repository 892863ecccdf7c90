"""Runs the identity service: `python -m services.identity`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

# The gateway sends reflection here: it answers for the services of all contexts.
from evergreen.v1 import (  # noqa: F401
    attestation_pb2,
    audit_pb2,
    device_pb2,
    enrollment_pb2,
    policy_pb2,
    telemetry_pb2,
)
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run, until_done
from servicekit.changes import Changes
from servicekit.settings import read_secret
from services.identity.api import (
    AuthApi,
    EventCredentialApi,
    InternalApi,
    TenantApi,
    TokenKeyApi,
    UserApi,
)
from services.identity.gatekeeper import Gatekeeper
from services.identity.http import identity_app
from services.identity.nats_tokens import NatsSigner
from services.identity.passwords import GuessThrottle, Passwords
from services.identity.service.event_credentials import EventCredentials
from services.identity.service.first_start import FirstStart
from services.identity.service.sessions import Sessions
from services.identity.service.tenants import Tenants
from services.identity.service.users import Users
from services.identity.settings import IdentitySettings
from services.identity.store import CHANGING

_FORGET_EVERY_SECONDS = 3600


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, IdentitySettings)
    passwords = Passwords()
    first_start = FirstStart(settings, kit.database, kit.outbox, passwords, kit.clock)
    signer = await until_done("make or open the signing keys", first_start.run)
    sessions = Sessions(
        kit.database,
        kit.outbox,
        kit.tenants,
        passwords,
        GuessThrottle(),
        signer,
        timedelta(days=settings.session_days),
        kit.clock,
    )
    tenants = Tenants(kit.database, kit.outbox, kit.tenants, kit.clock)
    users = Users(kit.database, kit.outbox, kit.tenants, passwords, kit.clock)

    gatekeeper = None
    if settings.events_issuer_file is not None:
        nats_signer = NatsSigner(read_secret(settings.events_issuer_file))
        gatekeeper = Gatekeeper(settings, nats_signer, kit.messaging, kit.clock)
    credentials = EventCredentials(
        kit.database,
        kit.outbox,
        kit.tenants,
        gatekeeper.changed if gatekeeper else None,
        kit.clock,
    )

    async def forget_old_sessions() -> None:
        while True:
            await sessions.forget_old()
            await asyncio.sleep(_FORGET_EVERY_SECONDS)

    changes = Changes(kit.database.lane(), *CHANGING)
    return Parts(
        public=[
            partial(rpc.add_AuthServiceServicer_to_server, AuthApi(sessions)),
            partial(rpc.add_TenantServiceServicer_to_server, TenantApi(tenants)),
            partial(rpc.add_UserServiceServicer_to_server, UserApi(users)),
            partial(
                rpc.add_EventCredentialServiceServicer_to_server,
                EventCredentialApi(credentials, settings.events_url),
            ),
            partial(rpc.add_TokenKeyServiceServicer_to_server, TokenKeyApi(signer)),
        ],
        internal=[
            partial(
                rpc.add_IdentityInternalServiceServicer_to_server,
                InternalApi(kit.database, changes, signer, kit.clock),
            )
        ],
        services=[
            "evergreen.v1.AuthService",
            "evergreen.v1.TenantService",
            "evergreen.v1.UserService",
            "evergreen.v1.EventCredentialService",
            "evergreen.v1.TokenKeyService",
        ],
        changes=changes,
        portal=identity_app(kit.channel, signer),
        tasks=[
            forget_old_sessions,
            *([partial(gatekeeper.guard, credentials)] if gatekeeper else []),
            *([partial(gatekeeper.keep, credentials)] if gatekeeper else []),
        ],
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("identity", IdentitySettings(), build)


if __name__ == "__main__":
    main()
