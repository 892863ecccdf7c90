"""The first start: the root tenant, the organisation `default`, its Owner, and the keys."""

from __future__ import annotations

from datetime import timedelta

from servicekit import logs
from servicekit.access import Role
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Connection, Database
from servicekit.sealing import Sealer
from servicekit.settings import read_secret
from services.identity import store
from services.identity.domain import SigningKey, Tenant, User, normalise_email
from services.identity.passwords import Passwords
from services.identity.settings import IdentitySettings
from services.identity.tokens import DEVICES, USERS, TokenSigner, generate_key

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

    async def run(self) -> TokenSigner:
        """Makes what is missing and answers the signer of tokens.

        Raises:
            SealingError: when the master key is missing or not the one that sealed the keys.
        """
        sealer = Sealer.from_file(self._settings.master_key_file, "identity-keys")
        async with self._database.transaction() as connection:
            await store.lock_first_start(connection)
            if await store.root_tenant(connection) is None:
                # Only now: nobody needs to keep the file after the first start.
                password = read_secret(self._settings.admin_password_file)
                if not password:
                    raise RuntimeError("EVERGREEN_ADMIN_PASSWORD_FILE is needed at the first start")
                await self._make_tenants(connection, await self._passwords.hash(password))
            keys = await self._keys(connection, sealer)
        return TokenSigner(keys, timedelta(days=self._settings.device_token_days))

    async def _make_tenants(self, connection: Connection, password_hash: str) -> None:
        at = self._clock()
        root = Tenant(new_id(), None, "root", "Root", "root", at, at)
        org = Tenant(new_id(), root.id, "org", "Default", DEFAULT_ORG_CODE, at, at)
        owner = User(
            new_id(),
            root.id,
            normalise_email(self._settings.admin_email),
            Role.OWNER,
            "active",
            at,
        )
        await store.insert_tenant(connection, root)
        await store.insert_tenant(connection, org)
        await store.insert_user(connection, owner, password_hash=password_hash)
        await self._outbox.append(
            connection,
            *(
                Event("identity.tenant_created", t.id, f"tenants/{t.id}", after=t.audit())
                for t in (root, org)
            ),
            Event("identity.user_created", root.id, f"users/{owner.id}", after=owner.audit()),
        )
        log.info("made the first tenants and their Owner", email=owner.email, org=org.code)

    async def _keys(self, connection: Connection, sealer: Sealer) -> list[SigningKey]:
        keys = [
            SigningKey(
                row["key_id"], row["purpose"], row["public_key"], sealer.open(row["sealed_seed"])
            )
            for row in await store.keys(connection)
        ]
        for purpose in (USERS, DEVICES):
            if not any(key.purpose == purpose for key in keys):
                key = generate_key(purpose)
                await store.insert_key(
                    connection,
                    key.key_id,
                    purpose,
                    key.public_key,
                    sealer.seal(key.seed),
                    self._clock(),
                )
                keys.append(key)
        return keys
