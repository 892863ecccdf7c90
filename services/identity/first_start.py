"""The first start: the root tenant, the organisation `default`, and its Owner."""

from __future__ import annotations

from contract.access import Role
from contract.events.identity.tenants import TenantCreated
from contract.events.identity.users import UserCreated
from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.security.passwords import PasswordHashes
from servicekit.settings import read_secret
from servicekit.texts import email_fault, normal_email
from services.identity.authenticators.passwords import Passwords
from services.identity.settings import IdentitySettings
from services.identity.tenants import store as tenants_store
from services.identity.tenants.domain import Tenant
from services.identity.users import store as users_store
from services.identity.users.domain import User

log = logs.get(__name__)

DEFAULT_ORG_CODE = "default"


class FirstStart:
    """Makes what a new installation needs; does nothing on an existing one."""

    def __init__(
        self,
        settings: IdentitySettings,
        database: Database,
        outbox: Outbox,
        passwords: Passwords,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._database = database
        self._outbox = outbox
        self._passwords = passwords
        self._clock = clock

    async def run(self) -> None:
        """Makes what is missing."""
        async with self._database.system_transaction("there is no tenant yet") as connection:
            # Processes that start at the same time take turns.
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtext('identity:first-start'))"
            )
            if await tenants_store.root_tenant(connection) is None:
                # Only now: nobody needs to keep the file after the first start.
                password = read_secret(self._settings.admin_password_file)
                if not password:
                    raise RuntimeError("EVERGREEN_ADMIN_PASSWORD_FILE is needed at the first start")
                if (fault := email_fault(self._settings.admin_email.strip())) is not None:
                    raise RuntimeError(f"EVERGREEN_ADMIN_EMAIL {fault}")
                try:
                    hashes = await self._passwords.hash(password, None)
                except DomainError as error:
                    raise RuntimeError(f"EVERGREEN_ADMIN_PASSWORD_FILE: {error.message}") from error
                await self._make_tenants(connection, hashes)

    async def _make_tenants(self, connection: Connection, password: PasswordHashes) -> None:
        at = self._clock()
        root = Tenant(new_id(), None, "root", "Root", "root", at, at)
        org = Tenant(new_id(), root.id, "org", "Default", DEFAULT_ORG_CODE, at, at)
        owner = User(
            new_id(),
            root.id,
            normal_email(self._settings.admin_email),
            Role.OWNER,
            "active",
            at,
        )
        await tenants_store.insert_tenant(connection, root)
        await tenants_store.insert_tenant(connection, org)
        await users_store.insert_user(connection, owner, password=password)
        await self._outbox.append(
            connection,
            *(CloudEvent(TenantCreated(id=t.id, after=t.snapshot()), t.id) for t in (root, org)),
            CloudEvent(UserCreated(id=owner.id, after=owner.snapshot()), root.id),
        )
        log.info("first tenants and Owner created", email=owner.email, org=org.code)
