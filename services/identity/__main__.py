"""Runs the identity service: `python -m services.identity`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from contract.events.identity import IdentityCallsRefused, KeyRotated
from evergreen.v1 import enrollment_pb2_grpc, policy_pb2_grpc, telemetry_pb2_grpc
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run, until_done
from servicekit.feeds.changes import Changes
from servicekit.http.asgi import AsgiApp
from servicekit.http.origins import origins_of
from servicekit.keys.service import SigningKeys
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.closing import TenantWork
from servicekit.rpc.chain import CallChain
from servicekit.rpc.reflection import add_reflection
from servicekit.security.sealing import Sealer
from servicekit.settings import read_secret
from services.identity.authenticators.breached import BreachedPasswords
from services.identity.authenticators.guesses import Guesses
from services.identity.authenticators.passwords import Passwords
from services.identity.directories.api import DirectoryApi
from services.identity.directories.domain import SEALED_FOR as DIRECTORY_SEALED_FOR
from services.identity.directories.logins import DirectoryLogins
from services.identity.directories.service import Directories
from services.identity.directories.syncs import Syncs
from services.identity.directories.threads import DirectoryThreads
from services.identity.directories.trials import Trials
from services.identity.directories.tries import Tries
from services.identity.email_domains.api import EmailDomainApi
from services.identity.email_domains.service import EmailDomains
from services.identity.event_access.api import EventCredentialApi
from services.identity.event_access.gatekeeper import Gatekeeper
from services.identity.event_access.nats_tokens import NatsSigner
from services.identity.event_access.service import EventCredentials
from services.identity.event_access.store import hold
from services.identity.feed import InternalApi
from services.identity.first_start import FirstStart
from services.identity.http import identity_app
from services.identity.pages.browsers import Browsers
from services.identity.pages.http import Surroundings
from services.identity.sessions.api import AuthApi, SessionApi
from services.identity.sessions.overview import SessionsOverview
from services.identity.sessions.refusals import UnknownLogins
from services.identity.sessions.service import Sessions
from services.identity.sessions.store import CHANGING, end_sessions_of
from services.identity.settings import IdentitySettings
from services.identity.sources.service import SourceAccounts
from services.identity.tenants.api import TenantApi
from services.identity.tenants.deletions import Deletions, erase
from services.identity.tenants.life import TenantLife
from services.identity.tenants.objects import TenantObjects
from services.identity.tenants.service import Tenants
from services.identity.token_keys.api import TokenKeyApi
from services.identity.token_keys.tokens import SEALED_FOR, TokenSigner, purposes
from services.identity.users.api import UserApi
from services.identity.users.service import Users

log = logs.get(__name__)

_FORGET_EVERY_SECONDS = 3600
_FORGET_GUESSES_EVERY_SECONDS = 60
_UNSEEN_EVERY_SECONDS = 600
_UNSEEN_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class _Directories:
    """What has to do with directories (LDAP)."""

    api: DirectoryApi
    logins: DirectoryLogins
    syncs: Syncs


def _directories(
    kit: Kit, settings: IdentitySettings, accounts: SourceAccounts, guesses: Sealer
) -> _Directories:
    """Wires them.

    Args:
        guesses: makes keys of what guesses are counted by.
    """
    base = (kit.database, kit.outbox, kit.tenants)
    threads = DirectoryThreads(settings.ldap_threads, settings.ldap_seconds)
    tries = Tries(kit.database, guesses, kit.clock)
    directories = Directories(
        *base,
        accounts,
        threads,
        Sealer.from_file(settings.master_key_file, DIRECTORY_SEALED_FOR),
        kit.clock,
        allow_private=settings.ldap_allow_private,
    )
    trials = Trials(*base, directories, threads, tries)
    syncs = Syncs(*base, directories, accounts, kit.clock)
    logins = DirectoryLogins(*base, directories, accounts, threads, tries, kit.clock)
    return _Directories(DirectoryApi(directories, trials, syncs), logins, syncs)


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, IdentitySettings)
    session_life = timedelta(days=settings.session_days)
    breached = settings.breached_passwords
    passwords = Passwords(settings.password_min, BreachedPasswords(breached) if breached else None)
    first_start = FirstStart(settings, kit.database, kit.outbox, passwords, kit.clock)
    await until_done("make the first tenants", first_start.run)
    device_life = timedelta(days=settings.device_token_days)
    keys = SigningKeys(
        kit.database,
        kit.outbox,
        kit.tenants,
        Sealer.from_file(settings.master_key_file, SEALED_FOR),
        context="identity",
        event=KeyRotated,
        purposes=purposes(device_life),
        lead=timedelta(seconds=settings.key_lead_seconds),
        clock=kit.clock,
    )
    await until_done("make or open the signing keys", keys.load)
    signer = TokenSigner(keys.ring, device_life)
    sealer = Sealer.from_file(settings.master_key_file, "identity-guesses")
    unknown = UnknownLogins(kit.database, kit.outbox, kit.clock)
    objects = TenantObjects(
        enrollment_pb2_grpc.EnrollmentInternalServiceStub(kit.channel("enrollment")),
        policy_pb2_grpc.PolicyInternalServiceStub(kit.channel("policy")),
        telemetry_pb2_grpc.TelemetryInternalServiceStub(kit.channel("telemetry")),
    )
    tenants = Tenants(kit.database, kit.outbox, kit.tenants, objects, kit.clock)
    life = TenantLife(
        kit.database,
        kit.outbox,
        kit.tenants,
        objects,
        timedelta(days=settings.archive_days),
        kit.clock,
    )
    deletions = Deletions(kit.database, kit.outbox, kit.tenants, life, kit.clock)

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
    users = Users(
        kit.database,
        kit.outbox,
        kit.tenants,
        passwords,
        end_sessions_of,
        credentials.orphan,
        hold,
        kit.clock,
    )

    accounts = SourceAccounts(kit.outbox, kit.tenants, end_sessions_of, credentials.orphan, hold)
    directories = _directories(kit, settings, accounts, sealer)
    sessions = Sessions(
        kit.database,
        kit.outbox,
        kit.tenants,
        passwords,
        Guesses(kit.database, sealer, kit.clock),
        directories.logins,
        signer,
        session_life,
        unknown,
        kit.clock,
    )

    async def forget_old_sessions() -> None:
        while True:
            await sessions.forget_old()
            await asyncio.sleep(_FORGET_EVERY_SECONDS)

    async def forget_old_guesses() -> None:
        while True:
            await sessions.forget_guesses()
            await asyncio.sleep(_FORGET_GUESSES_EVERY_SECONDS)

    async def deactivate_unseen() -> None:
        outage = Repeated(log, "inactive users wait")
        while True:
            try:
                unseen_for = timedelta(days=settings.inactive_days)
                while await users.deactivate_unseen(unseen_for, _UNSEEN_AT_ONCE) == _UNSEEN_AT_ONCE:
                    pass
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_UNSEEN_EVERY_SECONDS)

    def portal(chain: CallChain) -> AsgiApp:
        browsers = Browsers(chain, sessions, signer, session_life)
        around = Surroundings(
            browsers,
            users,
            kit.tenants,
            settings.public_url,
            origins=origins_of(f"{settings.public_url},{settings.former_public_urls}"),
            console=bool(settings.console_url),
            password_min=settings.password_min,
        )
        return identity_app(chain, kit.channel, signer, around)

    changes = Changes(kit.database.system_lane("the feed tells of all tenants"), *CHANGING)
    return Parts(
        calls_refused=IdentityCallsRefused,
        public=[
            partial(rpc.add_AuthServiceServicer_to_server, AuthApi(sessions)),
            partial(
                rpc.add_SessionServiceServicer_to_server,
                SessionApi(SessionsOverview(kit.database, kit.outbox, kit.tenants, kit.clock)),
            ),
            partial(rpc.add_TenantServiceServicer_to_server, TenantApi(tenants, life, deletions)),
            partial(rpc.add_UserServiceServicer_to_server, UserApi(users, settings.public_url)),
            partial(
                rpc.add_EventCredentialServiceServicer_to_server,
                EventCredentialApi(credentials, settings.events_url, kit.clock),
            ),
            partial(rpc.add_DirectoryServiceServicer_to_server, directories.api),
            partial(
                rpc.add_EmailDomainServiceServicer_to_server,
                EmailDomainApi(EmailDomains(kit.database, kit.outbox, kit.tenants, kit.clock)),
            ),
            partial(rpc.add_TokenKeyServiceServicer_to_server, TokenKeyApi(keys)),
            # The gateway sends reflection here.
            add_reflection,
        ],
        internal=[
            partial(
                rpc.add_IdentityInternalServiceServicer_to_server,
                InternalApi(kit.database, changes, signer, deletions, kit.clock),
            )
        ],
        services=[
            "evergreen.v1.AuthService",
            "evergreen.v1.SessionService",
            "evergreen.v1.TenantService",
            "evergreen.v1.UserService",
            "evergreen.v1.EventCredentialService",
            "evergreen.v1.DirectoryService",
            "evergreen.v1.EmailDomainService",
            "evergreen.v1.TokenKeyService",
        ],
        changes=changes,
        portal=portal,
        closing=TenantWork(erase=erase),
        tasks=[
            forget_old_sessions,
            forget_old_guesses,
            unknown.run,
            *([deactivate_unseen] if settings.inactive_days else []),
            deletions.run,
            deletions.purge,
            directories.syncs.run,
            keys.follower.run,
            *([partial(gatekeeper.guard, credentials)] if gatekeeper else []),
            *([partial(gatekeeper.keep, credentials)] if gatekeeper else []),
        ],
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("identity", IdentitySettings(), build)


if __name__ == "__main__":
    main()
