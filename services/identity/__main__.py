"""Runs the identity service: `python -m services.identity`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from contract.events.identity import IdentityCallsRefused
from contract.events.identity.programs import KeyRotated
from evergreen.v1 import enrollment_pb2_grpc, policy_pb2_grpc, telemetry_pb2_grpc
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run, until_done
from servicekit.feeds.changes import Changes
from servicekit.http.asgi import AsgiApp
from servicekit.http.origins import origins_of
from servicekit.keys.service import SigningKeys
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.outgoing.guard import Guard, Proxy
from servicekit.peers.closing import TenantWork
from servicekit.rpc.chain import CallChain
from servicekit.rpc.reflection import add_reflection
from servicekit.security.passkeys import RelyingParty
from servicekit.security.sealing import Sealer
from servicekit.settings import read_secret
from services.identity.api_tokens.accounts import ServiceAccounts
from services.identity.api_tokens.api import ApiTokenApi, ServiceAccountApi
from services.identity.api_tokens.service import ApiTokens
from services.identity.api_tokens.store import CHANGING as TOKENS_CHANGING
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
from services.identity.mail.api import MailApi
from services.identity.mail.domain import SEALED_FOR as MAIL_SEALED_FOR
from services.identity.mail.invitations import InvitationMails
from services.identity.mail.letters import Letters
from services.identity.mail.notices import Notices
from services.identity.mail.operations import MailOperations
from services.identity.mail.sender import Sender, tidy
from services.identity.mail.service import Mails
from services.identity.mail.smtp import Smtp
from services.identity.pages.base import Surroundings
from services.identity.pages.browsers import Browsers
from services.identity.password_resets.service import PasswordResets
from services.identity.scim.api import ScimSourceApi
from services.identity.scim.provisioning import Provisioning
from services.identity.scim.service import ScimSources
from services.identity.scim.settling import Settling
from services.identity.second_factor.api import SecondFactorApi
from services.identity.second_factor.challenges import Challenges
from services.identity.second_factor.domain import SEALED_FOR as FACTORS_SEALED_FOR
from services.identity.second_factor.passkeys import Passkeys
from services.identity.second_factor.policies import SignInPolicies
from services.identity.second_factor.service import SecondFactors
from services.identity.second_factor.tries import CodeTries
from services.identity.sessions.api import AuthApi, SessionApi
from services.identity.sessions.confirming import Confirming
from services.identity.sessions.logins import Logins
from services.identity.sessions.opening import Openings
from services.identity.sessions.overview import SessionsOverview
from services.identity.sessions.own_passwords import OwnPasswords
from services.identity.sessions.refusals import UnknownLogins
from services.identity.sessions.second_steps import SecondSteps
from services.identity.sessions.service import Authentication, Sessions
from services.identity.sessions.store import (
    CHANGING,
    end_sessions_by_source,
    end_sessions_of,
    end_sessions_of_source,
)
from services.identity.settings import IdentitySettings
from services.identity.sources.service import SourceAccounts
from services.identity.sso.accounts import SsoAccounts
from services.identity.sso.api import SsoProviderApi
from services.identity.sso.asking import Asking
from services.identity.sso.domain import SEALED_FOR as SSO_SEALED_FOR
from services.identity.sso.logins import SsoLogins
from services.identity.sso.logouts import SsoLogouts
from services.identity.sso.service import Providers
from services.identity.sso.trials import Trials as SsoTrials
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

_UNSEEN_AT_ONCE = 200
_TRIALS = 4
"""Tries of directories that may be under way."""


@dataclass(frozen=True, slots=True)
class _Directories:
    """What has to do with directories (LDAP)."""

    api: DirectoryApi
    logins: DirectoryLogins
    tasks: tuple[Callable[[], Coroutine[Any, Any, None]], ...]


def _directories(
    kit: Kit, settings: IdentitySettings, accounts: SourceAccounts, guesses: Sealer
) -> _Directories:
    """Wires them.

    Args:
        guesses: makes keys of what guesses are counted by.
    """
    base = (kit.database, kit.outbox, kit.tenants)
    threads = DirectoryThreads(
        settings.ldap_threads, settings.ldap_seconds, slow=max(1, settings.ldap_threads // 2)
    )
    tries = Tries(kit.database, guesses, kit.clock)
    directories = Directories(
        *base,
        accounts,
        threads,
        Sealer.from_file(settings.master_key_file, DIRECTORY_SEALED_FOR),
        kit.clock,
        guard=Guard(settings.ldap_rules),
    )
    # Apart from logins, and one of a tenant at a time: none waits for another's.
    trial_threads = DirectoryThreads(
        _TRIALS, settings.ldap_seconds, "directory-trials", side_by_side=1
    )
    trials = Trials(*base, directories, accounts, trial_threads, tries)
    syncs = Syncs(*base, directories, accounts, kit.clock)
    logins = DirectoryLogins(
        kit.database, kit.outbox, directories, accounts, threads, tries, kit.clock
    )
    ends = (threads.run_until_stopped, trial_threads.run_until_stopped)
    tasks = (syncs.run, *ends) if settings.outbound else ends
    return _Directories(DirectoryApi(directories, trials, syncs), logins, tasks)


@dataclass(frozen=True, slots=True)
class _SingleSignOn:
    """What has to do with providers (OpenID Connect)."""

    api: SsoProviderApi
    providers: Providers
    logins: SsoLogins
    accounts: SsoAccounts
    logouts: SsoLogouts


def _authentication(
    kit: Kit,
    sealer: Sealer,
    passwords: Passwords,
    directories: DirectoryLogins,
    factors: SecondFactors,
    passkeys: Passkeys,
    challenges: Challenges,
    sso: SsoAccounts,
    signer: TokenSigner,
    session_life: timedelta,
    unknown: UnknownLogins,
    notices: Notices,
) -> Authentication:
    """All that logs people in."""
    database, outbox, tenants, clock = kit.database, kit.outbox, kit.tenants, kit.clock
    guesses = Guesses(database, sealer, clock)
    code_tries = CodeTries(database, sealer, clock)
    openings = Openings(
        database,
        outbox,
        guesses,
        factors,
        challenges,
        code_tries,
        signer,
        session_life,
        unknown,
        notices,
        clock,
    )
    second_steps = SecondSteps(
        database,
        tenants,
        guesses,
        directories,
        factors,
        passkeys,
        challenges,
        code_tries,
        openings,
        clock,
    )
    return Authentication(
        Logins(
            database,
            tenants,
            passwords,
            guesses,
            directories,
            factors,
            sso,
            openings,
            second_steps,
            clock,
        ),
        second_steps,
        Confirming(
            database,
            outbox,
            passwords,
            guesses,
            directories,
            factors,
            passkeys,
            code_tries,
            signer,
            openings,
            clock,
        ),
        OwnPasswords(
            database, outbox, tenants, passwords, guesses, factors, openings, second_steps, clock
        ),
        Sessions(
            database,
            outbox,
            tenants,
            guesses,
            directories,
            factors,
            passkeys,
            challenges,
            signer,
            openings,
            clock,
        ),
    )


def _single_sign_on(
    kit: Kit, settings: IdentitySettings, accounts: SourceAccounts
) -> _SingleSignOn:
    """Wires it."""
    base = (kit.database, kit.outbox, kit.tenants)
    key = settings.master_key_file
    insecure = settings.allow_insecure_sso and settings.outbound
    providers = Providers(
        *base,
        accounts,
        Sealer.from_file(key, SSO_SEALED_FOR),
        end_sessions_of_source,
        kit.clock,
        insecure=insecure,
    )
    guard = Guard(settings.sso_rules, Proxy.read(settings.sso_proxy))
    asking = Asking(guard, insecure=insecure)
    trials = SsoTrials(*base, providers, asking, settings.public_url, kit.clock)
    sealer = Sealer.from_file(key, "sso-state")
    return _SingleSignOn(
        SsoProviderApi(providers, trials, settings.public_url),
        providers,
        SsoLogins(kit.database, providers, asking, sealer, settings.public_url, kit.clock),
        SsoAccounts(*base, providers, accounts, end_sessions_by_source, kit.clock),
        SsoLogouts(
            *base,
            providers,
            asking,
            sealer,
            end_sessions_by_source,
            settings.public_url,
            kit.clock,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Mail:
    """What has to do with mail."""

    mails: Mails
    notices: Notices
    operations: MailOperations
    tasks: tuple[Callable[[], Coroutine[Any, Any, None]], ...]


def _mail(kit: Kit, settings: IdentitySettings) -> _Mail:
    """Wires it; without a mail server nothing is queued, and nothing is sent."""
    server = settings.mail_server()
    if server is not None and not server.is_private:
        log.warning(
            "mails go unencrypted",
            server=f"smtp://{server.host}:{server.port}",
            advice="use smtps:// or smtp+starttls://: links open accounts",
        )
    mails = Mails(
        Sealer.from_file(settings.master_key_file, MAIL_SEALED_FOR) if server else None,
        kit.tenants,
        kit.clock,
    )
    notices = Notices(mails)
    kit.outbox.followed_by(notices.of_events)
    smtp = Smtp(server) if server else None
    letters = Letters(settings.public_url, server.sender, server.name) if server else None
    manners = (settings.mail_language, settings.mail_time_zone)
    operations = MailOperations(
        kit.database,
        kit.outbox,
        kit.tenants,
        mails,
        server,
        letters,
        smtp,
        manners,
        kit.clock,
    )
    if smtp is None or letters is None or mails.sealer is None:
        return _Mail(mails, notices, operations, ())
    sender = Sender(kit.database, smtp, letters, mails.sealer, kit.clock, *manners)
    return _Mail(mails, notices, operations, (sender.run,))


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
    factor_sealer = Sealer.from_file(settings.master_key_file, FACTORS_SEALED_FOR)
    factors = SecondFactors(
        kit.database, kit.outbox, kit.tenants, end_sessions_of, factor_sealer, kit.clock
    )
    api_tokens = ApiTokens(
        kit.database, kit.outbox, kit.tenants, signer, factors.check_kept, kit.clock
    )
    service_accounts = ServiceAccounts(
        kit.database, kit.outbox, kit.tenants, api_tokens.holder_changed, kit.clock
    )
    mail = _mail(kit, settings)
    users = Users(
        kit.database,
        kit.outbox,
        kit.tenants,
        passwords,
        end_sessions_of,
        credentials.orphan,
        hold,
        api_tokens,
        InvitationMails(mail.mails, kit.tenants),
        kit.clock,
    )
    resets = PasswordResets(kit.database, kit.outbox, kit.tenants, mail.mails, sealer, kit.clock)

    accounts = SourceAccounts(kit.outbox, kit.tenants, end_sessions_of, credentials.orphan, hold)
    directories = _directories(kit, settings, accounts, sealer)
    passkeys = Passkeys(
        kit.database,
        kit.outbox,
        factors,
        factor_sealer,
        RelyingParty.at(settings.public_url),
        kit.clock,
    )
    policies = SignInPolicies(kit.database, kit.outbox, kit.tenants, factors, kit.clock)
    sso = _single_sign_on(kit, settings, accounts)
    base = (kit.database, kit.outbox, kit.tenants, accounts, Settling(kit.outbox, accounts))
    provisioning = Provisioning(*base, kit.clock)
    scim_sources = ScimSources(*base, kit.clock)
    auth = _authentication(
        kit,
        sealer,
        passwords,
        directories.logins,
        factors,
        passkeys,
        Challenges(kit.database, factor_sealer, kit.clock),
        sso.accounts,
        signer,
        session_life,
        unknown,
        mail.notices,
    )
    sessions = auth.sessions

    overview = SessionsOverview(kit.database, kit.outbox, kit.tenants, kit.clock)

    async def deactivate_unseen() -> None:
        unseen_for = timedelta(days=settings.inactive_days)
        while await users.deactivate_unseen(unseen_for, _UNSEEN_AT_ONCE) == _UNSEEN_AT_ONCE:
            pass

    def portal(chain: CallChain) -> AsgiApp:
        browsers = Browsers(
            chain,
            auth,
            overview,
            factors,
            passkeys,
            sso.logins,
            sso.accounts,
            sso.logouts,
            signer,
            session_life,
        )
        around = Surroundings(
            browsers,
            users,
            resets,
            sso.providers,
            kit.tenants,
            settings.public_url,
            origins=origins_of(f"{settings.public_url},{settings.former_public_urls}"),
            console=bool(settings.console_url),
            password_min=settings.password_min,
        )
        return identity_app(chain, kit.channel, signer, around, provisioning)

    lane = kit.database.system_lane("the feed tells of all tenants")
    changes = Changes(lane, *CHANGING, *TOKENS_CHANGING)
    return Parts(
        calls_refused=IdentityCallsRefused,
        public=[
            partial(rpc.add_AuthServiceServicer_to_server, AuthApi(auth, sso.providers, resets)),
            partial(
                rpc.add_SessionServiceServicer_to_server,
                SessionApi(overview),
            ),
            partial(
                rpc.add_SecondFactorServiceServicer_to_server,
                SecondFactorApi(factors, passkeys, policies),
            ),
            partial(rpc.add_TenantServiceServicer_to_server, TenantApi(tenants, life, deletions)),
            partial(rpc.add_UserServiceServicer_to_server, UserApi(users, settings.public_url)),
            partial(
                rpc.add_EventCredentialServiceServicer_to_server,
                EventCredentialApi(credentials, settings.events_url, kit.clock),
            ),
            partial(rpc.add_DirectoryServiceServicer_to_server, directories.api),
            partial(rpc.add_SsoProviderServiceServicer_to_server, sso.api),
            partial(
                rpc.add_ScimSourceServiceServicer_to_server,
                ScimSourceApi(scim_sources, settings.public_url),
            ),
            partial(
                rpc.add_EmailDomainServiceServicer_to_server,
                EmailDomainApi(EmailDomains(kit.database, kit.outbox, kit.tenants, kit.clock)),
            ),
            partial(rpc.add_ApiTokenServiceServicer_to_server, ApiTokenApi(api_tokens, kit.clock)),
            partial(
                rpc.add_ServiceAccountServiceServicer_to_server, ServiceAccountApi(service_accounts)
            ),
            partial(rpc.add_TokenKeyServiceServicer_to_server, TokenKeyApi(keys)),
            partial(rpc.add_MailServiceServicer_to_server, MailApi(mail.operations)),
            # The gateway sends reflection here.
            add_reflection,
        ],
        internal=[
            partial(
                rpc.add_IdentityInternalServiceServicer_to_server,
                InternalApi(
                    kit.database,
                    changes,
                    signer,
                    deletions,
                    api_tokens,
                    mail.operations,
                    kit.clock,
                ),
            )
        ],
        services=[
            "evergreen.v1.AuthService",
            "evergreen.v1.SessionService",
            "evergreen.v1.SecondFactorService",
            "evergreen.v1.TenantService",
            "evergreen.v1.UserService",
            "evergreen.v1.EventCredentialService",
            "evergreen.v1.DirectoryService",
            "evergreen.v1.EmailDomainService",
            "evergreen.v1.SsoProviderService",
            "evergreen.v1.ScimSourceService",
            "evergreen.v1.ApiTokenService",
            "evergreen.v1.ServiceAccountService",
            "evergreen.v1.TokenKeyService",
            "evergreen.v1.MailService",
        ],
        changes=changes,
        portal=portal,
        closing=TenantWork(erase=erase),
        tasks=[
            _regularly("old sessions stay", 3600, sessions.forget_old),
            _regularly("old failures of logins stay", 60, sessions.forget_guesses),
            _regularly("old links for passwords stay", 600, resets.forget_old),
            _regularly("ended mails stay", 60, partial(tidy, kit.database, kit.clock)),
            *mail.tasks,
            _regularly("accounts of SCIM sources wait", 15, scim_sources.go_on),
            _regularly("used states of single sign-on stay", 600, sso.providers.forget_used),
            unknown.run,
            _regularly("ends of API tokens not told", 600, api_tokens.tell_of_ends),
            _regularly("tokens of people who left work", 600, api_tokens.end_unconfirmed),
            *(
                [_regularly("inactive users wait", 600, deactivate_unseen)]
                if settings.inactive_days
                else []
            ),
            deletions.run,
            deletions.purge,
            *directories.tasks,
            keys.follower.run,
            *([partial(gatekeeper.guard, credentials)] if gatekeeper else []),
            *([partial(gatekeeper.keep, credentials)] if gatekeeper else []),
        ],
    )


def _regularly(
    waits: str, seconds: float, work: Callable[[], Awaitable[None]]
) -> Callable[[], Coroutine[Any, Any, None]]:
    """A loop that does some work for as long as the service lives.

    Args:
        waits: what the log says where it cannot be done.
        seconds: between two times.
        work: what is to be done.
    """

    async def run() -> None:
        outage = Repeated(log, waits)
        while True:
            try:
                await work()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(seconds)

    return run


def main() -> None:
    """Runs until it is told to stop."""
    run("identity", IdentitySettings(), build)


if __name__ == "__main__":
    main()
