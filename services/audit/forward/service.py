"""The use cases of forwarders: made, changed, tested, replayed, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.audit import (
    ForwarderCreated,
    ForwarderDeleted,
    ForwarderQuarantineRetried,
    ForwarderReplay,
    ForwarderReplayed,
    ForwarderRetry,
    ForwarderSecret,
    ForwarderSecretRotated,
    ForwarderUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Scope
from servicekit.errors import already_exists, failed_precondition, invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import new_id
from servicekit.messaging.events import CloudEvent
from servicekit.outgoing.wire import client_context
from servicekit.rpc.pagination import Page
from servicekit.security.certificates import first_end_of
from servicekit.security.sealing import SealingError
from servicekit.times import RULE, is_usable, parse_rfc3339
from services.audit.forward import health_store, messages, position_store, quarantine_store, store
from services.audit.forward.domain import (
    MOST_PER_INSTALLATION,
    Config,
    Disabled,
    Filter,
    Forwarder,
    Kind,
    Lag,
    NotDeliveredError,
    Quarantined,
    Secrets,
    Syslog,
    Transport,
    Webhook,
    check_filter,
    check_header_value,
    check_syslog,
    check_webhook,
)
from services.audit.forward.formats import UnreadableError
from services.audit.forward.outbound import Lanes, Outbound
from services.audit.forward.syslog import send_syslog_test
from services.audit.forward.webhook import new_signing_secret
from services.audit.forward.worker import Worker

NOW: Final = "now"
BEGINNING: Final = "beginning"
_MOST_TESTS: Final = 8
"""Tests at a time, of all tenants;"""
_MOST_LOOKUPS: Final = 16
"""names that are looked up for a message at once;"""
_MOST_OF_A_TENANT: Final = 2
"""and of either for one tenant."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how, as a request has it: with secrets, where they are given."""

    config: Config
    headers: Mapping[str, str]
    """Values by name; empty to keep the one that is stored."""
    client_key_pem: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A new forwarder."""

    name: str
    kind: Kind
    enabled: bool
    start_at: str
    below_too: bool
    filter: Filter
    target: Target


@dataclass(frozen=True, slots=True)
class Change:
    """What to change; `None` leaves it as it is."""

    name: str | None = None
    enabled: bool | None = None
    filter: Filter | None = None
    below_too: bool | None = None
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A forwarder with what waits, and with its secret in the answer that makes it."""

    forwarder: Forwarder
    lag: Lag
    header_names: frozenset[str]
    """Of its headers that have a value."""
    has_client_key: bool
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tested:
    """What came of a test."""

    error: str
    status: int
    took: timedelta


class Forwarders:
    """The forwarders of tenants.

    Args:
        outbound: what senders need.
        worker: is told of changes.
        most: forwarders that a tenant may have.
    """

    def __init__(self, outbound: Outbound, worker: Worker, most: int) -> None:
        self._outbound = outbound
        self._database = outbound.database
        self._outbox = outbound.outbox
        self._tenants = outbound.tenants
        self._clock = outbound.clock
        self._worker = worker
        self._most = most
        self._tests = Lanes(_MOST_TESTS, _MOST_OF_A_TENANT)
        self._lookups = Lanes(_MOST_LOOKUPS, _MOST_OF_A_TENANT)

    async def list_forwarders(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Shown, UUID]:
        """The forwarders of the caller's subtree, or of a tenant in it and of those below it.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            page = await store.list_forwarders(connection, scope, after, limit)
        return Page([await self._shown(found) for found in page.items], page.after)

    async def get(self, call: Call, forwarder_id: UUID) -> Shown:
        """One forwarder.

        Raises:
            DomainError: NOT_FOUND.
        """
        return await self._shown(await self._found(call, forwarder_id))

    async def create(self, call: Call, org_id: UUID | None, wanted: Wanted) -> Shown:
        """Adds a forwarder.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree; INVALID_ARGUMENT with
                the field; ALREADY_EXISTS when another one of the tenant has the name;
                FAILED_PRECONDITION when there are too many.
        """
        tenant_id = org_id or UUID(call.caller.tenant_id)
        await self._tenants.require(call.caller, tenant_id, to_add=True)
        _starting(wanted.start_at)
        config = _checked(wanted.target.config)
        secrets = _secrets(wanted.target, None, Secrets())
        if wanted.kind is Kind.WEBHOOK:
            secrets = replace(secrets, signing=(new_signing_secret(),))
        now = self._clock()
        forwarder = Forwarder(
            id=new_id(),
            tenant_id=tenant_id,
            name=wanted.name,
            kind=wanted.kind,
            enabled=wanted.enabled,
            disabled_reason=Disabled.NOT if wanted.enabled else Disabled.BY_USER,
            below_too=wanted.below_too,
            filter=check_filter(wanted.filter),
            config=config,
            sealed_secrets=self._outbound.sealer.seal(secrets.to_bytes()),
            second_secret_until=None,
            start_at=wanted.start_at or NOW,
            revision=1,
            created_at=now,
            created_by=call.caller.name,
            updated_at=now,
        )
        _check_certificates(config, secrets)
        await self._check_address(forwarder)
        async with self._database.system_transaction(
            "a forwarder begins in the chains of a subtree"
        ) as connection:
            await store.lock_all(connection)
            own, found = await store.count(connection, tenant_id)
            # What other tenants have made keeps the operator from nothing.
            full = found >= MOST_PER_INSTALLATION and not self._outbound.is_root(forwarder)
            if own >= self._most or full:
                raise failed_precondition(
                    "TOO_MANY_FORWARDERS",
                    f"a tenant has at most {self._most}, an installation {MOST_PER_INSTALLATION};"
                    " delete one",
                )
            await _check_name_free(connection, forwarder)
            await store.insert(connection, forwarder)
            await self._begin(connection, forwarder)
            event = ForwarderCreated(id=forwarder.id, after=messages.snapshot(forwarder))
            await self._outbox.append(connection, CloudEvent(event, tenant_id))
        self._worker.changed(forwarder.id)
        shown = await self._shown(forwarder)
        return replace(shown, secret=secrets.signing[0] if secrets.signing else "")

    async def update(self, call: Call, forwarder_id: UUID, change: Change) -> Shown:
        """Changes a forwarder, and has it try at once.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field; ALREADY_EXISTS as `create`;
                ABORTED when its etag is another.
        """
        scope = await self._tenants.query_scope(call.caller)
        before = await self._found(call, forwarder_id)
        if change.target is not None:
            # Before the row is held: a name may take seconds to resolve.
            _check_kind(before, change.target)
            await self._check_address(replace(before, config=_checked(change.target.config)))
        async with self._database.system_transaction(
            "a forwarder begins in the chains of a subtree"
        ) as connection:
            before = await self._locked(connection, scope, forwarder_id)
            check_etag(before.etag)
            after, secret = self._changed(before, change)
            if after != before:
                after = replace(after, revision=before.revision + 1, updated_at=self._clock())
                if after.name != before.name:
                    await store.lock_all(connection)
                    await _check_name_free(connection, after)
                await store.update(connection, after)
                if after.below_too and not before.below_too:
                    # Those below begin with what comes; what waits of its own stays.
                    await position_store.keep_beginning(connection, after)
                    await position_store.start_now(connection, after, self._outbound.chains(after))
                event = ForwarderUpdated(
                    id=after.id,
                    before=messages.snapshot(before),
                    after=messages.snapshot(after),
                )
                await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
            if after.enabled and not before.enabled:
                await health_store.begin_anew(connection, forwarder_id)
            if after != before or before.state.next_attempt_at is not None:
                await health_store.try_now(connection, forwarder_id)
        self._worker.changed(forwarder_id)
        return replace(await self.get(call, forwarder_id), secret=secret)

    def _changed(self, before: Forwarder, change: Change) -> tuple[Forwarder, str]:
        """The forwarder as it will be, and the secret that signs, if it had to be made anew."""
        after, made = before, ""
        if change.name is not None:
            after = replace(after, name=change.name)
        if change.enabled is not None and change.enabled != before.enabled:
            reason = Disabled.NOT if change.enabled else Disabled.BY_USER
            after = replace(after, enabled=change.enabled, disabled_reason=reason)
        if change.filter is not None:
            after = replace(after, filter=check_filter(change.filter))
        if change.below_too is not None:
            after = replace(after, below_too=change.below_too)
        if change.target is None:
            return after, made
        config = _checked(change.target.config)
        try:
            known = self._outbound.secrets(before)
        except (SealingError, ValueError):
            # They are given anew.
            made = new_signing_secret() if before.kind is Kind.WEBHOOK else ""
            known = Secrets(signing=(made,) if made else ())
            after = replace(after, sealed_secrets=b"")
        secrets = _secrets(change.target, before.config, known)
        _check_certificates(config, secrets)
        if config != before.config or secrets != known or not after.sealed_secrets:
            sealed = self._outbound.sealer.seal(secrets.to_bytes())
            after = replace(after, config=config, sealed_secrets=sealed)
        return after, made

    async def _begin(self, connection: Connection, forwarder: Forwarder) -> None:
        """Begins where the forwarder was told to, in the chains where it has not begun yet."""
        chains = self._outbound.chains(forwarder)
        starting = _starting(forwarder.start_at)
        if starting is not None:
            await position_store.start_from(connection, forwarder, chains, starting)
        elif forwarder.start_at == NOW:
            await position_store.start_now(connection, forwarder, chains)

    async def delete(self, call: Call, forwarder_id: UUID) -> None:
        """Removes a forwarder.

        Raises:
            DomainError: as `update`.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._locked(connection, scope, forwarder_id)
            check_etag(before.etag)
            await store.delete(connection, before)
            event = ForwarderDeleted(id=forwarder_id, before=messages.snapshot(before))
            await self._outbox.append(connection, CloudEvent(event, before.tenant_id))
        self._worker.changed(forwarder_id)

    async def test(self, call: Call, forwarder_id: UUID) -> Tested:
        """Sends a message now; after a success the forwarder tries at once.

        Raises:
            DomainError: NOT_FOUND.
        """
        forwarder = await self._found(call, forwarder_id)
        loop = asyncio.get_running_loop()
        status, error = 0, ""
        is_root = self._outbound.is_root(forwarder)
        async with self._tests.one(forwarder.tenant_id, root=is_root):
            begun = loop.time()
            try:
                status = await self._send_test(forwarder)
            except NotDeliveredError as wrong:
                status, error = wrong.status, wrong.reason
            except (SealingError, ValueError):
                error = Disabled.SECRET_UNREADABLE.value
            except UnreadableError:
                error = "UNREADABLE"
            took = timedelta(seconds=loop.time() - begun)
        async with self._database.transaction(Scope.of(forwarder.tenant_id)) as connection:
            if not error:
                await health_store.try_now(connection, forwarder_id)
            await self._outbox.append(connection, messages.tested(forwarder, error))
        self._worker.changed(forwarder_id)
        return Tested(error, status, took)

    async def _send_test(self, forwarder: Forwarder) -> int:
        item = messages.make_test(forwarder)
        if forwarder.kind is Kind.SYSLOG:
            await send_syslog_test(self._outbound, forwarder, item)
            return 0
        sender = self._outbound.webhook(forwarder)
        try:
            return await sender.send([item], [sender.piece(item)])
        finally:
            await sender.close()

    async def replay(self, call: Call, forwarder_id: UUID, since: datetime) -> Shown:
        """Sends again from a time on.

        Raises:
            DomainError: NOT_FOUND.
        """
        forwarder = await self._found(call, forwarder_id)
        async with self._database.system_transaction(
            "a forwarder begins in the chains of a subtree"
        ) as connection:
            found = await self._locked(connection, Scope.of(forwarder.tenant_id), forwarder_id)
            chains = self._outbound.chains(found)
            await position_store.go_back(connection, found, chains, since)
            replayed = ForwarderReplay(name=found.name, starting=since)
            event = ForwarderReplayed(id=forwarder_id, after=replayed)
            await self._outbox.append(connection, CloudEvent(event, found.tenant_id))
        self._worker.changed(forwarder_id)
        return await self.get(call, forwarder_id)

    async def rotate_secret(self, call: Call, forwarder_id: UUID, overlap: timedelta) -> Shown:
        """Makes a new secret that signs; the present one signs, too, until the overlap ends.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION for what is no webhook.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._locked(connection, scope, forwarder_id)
            if before.kind is not Kind.WEBHOOK:
                raise failed_precondition(
                    "NO_SECRET", "only webhooks have a secret that signs their messages"
                )
            try:
                known = self._outbound.secrets(before)
            except (SealingError, ValueError) as broken:
                raise failed_precondition(
                    Disabled.SECRET_UNREADABLE.value,
                    "the master key does not open its secrets; give the webhook anew",
                ) from broken
            now = self._clock()
            secrets = replace(known, signing=(new_signing_secret(), *known.signing[:1]))
            after = replace(
                before,
                sealed_secrets=self._outbound.sealer.seal(secrets.to_bytes()),
                second_secret_until=now + overlap,
                revision=before.revision + 1,
                updated_at=now,
            )
            await store.update(connection, after)
            rotated = ForwarderSecret(name=after.name, overlap_until=now + overlap)
            event = ForwarderSecretRotated(id=forwarder_id, after=rotated)
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
        self._worker.changed(forwarder_id)
        return replace(await self.get(call, forwarder_id), secret=secrets.signing[0])

    async def list_quarantined(
        self, call: Call, forwarder_id: UUID, after: UUID | None, limit: int
    ) -> Page[Quarantined, UUID]:
        """The messages that a target refused for good, the newest first.

        Raises:
            DomainError: NOT_FOUND.
        """
        forwarder = await self._found(call, forwarder_id)
        async with self._database.transaction(Scope.of(forwarder.tenant_id)) as connection:
            return await quarantine_store.list_quarantined(connection, forwarder_id, after, limit)

    async def retry_quarantined(self, call: Call, forwarder_id: UUID, ids: Sequence[UUID]) -> int:
        """Has messages sent once more; answers how many.

        Raises:
            DomainError: NOT_FOUND.
        """
        forwarder = await self._found(call, forwarder_id)
        async with self._database.transaction(Scope.of(forwarder.tenant_id)) as connection:
            count = await quarantine_store.ask_again(connection, forwarder_id, ids or None)
            retried = ForwarderRetry(name=forwarder.name, messages=count)
            event = ForwarderQuarantineRetried(id=forwarder_id, after=retried)
            await self._outbox.append(connection, CloudEvent(event, forwarder.tenant_id))
        self._worker.changed(forwarder_id)
        return count

    async def _found(self, call: Call, forwarder_id: UUID) -> Forwarder:
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await store.find(connection, scope, forwarder_id)
        if found is None:
            raise not_found("forwarder", forwarder_id)
        return found

    async def _locked(self, connection: Connection, scope: Scope, forwarder_id: UUID) -> Forwarder:
        found = await store.find(connection, scope, forwarder_id, for_update=True)
        if found is None:
            raise not_found("forwarder", forwarder_id)
        return found

    async def _shown(self, forwarder: Forwarder) -> Shown:
        async with self._database.system_transaction(
            "a forwarder reads the chains of a subtree"
        ) as connection:
            lag = await position_store.lag(
                connection, forwarder.id, self._outbound.chains(forwarder)
            )
        try:
            secrets = self._outbound.secrets(forwarder)
        except (SealingError, ValueError):
            secrets = Secrets()
        names = frozenset(name for name, value in secrets.headers.items() if value)
        return Shown(forwarder, lag, names, bool(secrets.client_key_pem))

    async def _check_address(self, forwarder: Forwarder) -> None:
        """Says at once what `Guard.connect` would say later.

        Raises:
            DomainError: INVALID_ARGUMENT with the field.
        """
        config, root = forwarder.config, self._outbound.is_root(forwarder)
        is_webhook = isinstance(config, Webhook)
        async with self._lookups.one(forwarder.tenant_id, root=root):
            why = await self._outbound.guard.refusal(
                config.host,
                config.port,
                root=root,
                plain_http=isinstance(config, Webhook) and config.parts.scheme == "http",
            )
        if why:
            raise invalid_field(
                "webhook.url" if is_webhook else "syslog.host",
                f"is not allowed: {why}; the operator can name it in EVERGREEN_FORWARD_ALLOW",
            )


async def _check_name_free(connection: Connection, forwarder: Forwarder) -> None:
    """Refuses a name that another forwarder of the tenant has: commands go by names. Those that
    have the same one from before go on, and keep it.

    Raises:
        DomainError: ALREADY_EXISTS.
    """
    if await store.has_name(connection, forwarder):
        raise already_exists("NAME_TAKEN", "name: already in use by another forwarder")


def _starting(start_at: str) -> datetime | None:
    if start_at in ("", NOW, BEGINNING):
        return None
    try:
        found = parse_rfc3339(start_at)
    except ValueError:
        raise invalid_field("startAt", "must be now, beginning or a time (RFC 3339)") from None
    if not is_usable(found):
        raise invalid_field("startAt", RULE)
    return found


def _check_kind(forwarder: Forwarder, target: Target) -> None:
    kind = Kind.WEBHOOK if isinstance(target.config, Webhook) else Kind.SYSLOG
    if kind is not forwarder.kind:
        raise invalid_field(kind.value, f"this forwarder is of kind {forwarder.kind}")


def _checked(config: Config) -> Config:
    return check_webhook(config) if isinstance(config, Webhook) else check_syslog(config)


def _secrets(target: Target, before: Config | None, known: Secrets) -> Secrets:
    """What is to be kept secret: what is given, and else what is known, for the same target.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    config = target.config
    same = before is not None and before.where == config.where
    field = "webhook" if isinstance(config, Webhook) else "syslog"
    lower = {name.lower(): value for name, value in known.headers.items()}
    headers = {}
    for index, name in enumerate(config.headers if isinstance(config, Webhook) else ()):
        value = target.headers.get(name, "")
        if not value:
            if not same or not lower.get(name.lower()):
                raise invalid_field(
                    f"webhook.headers[{index}].value",
                    "must be given; what is stored goes to no other scheme, host or port",
                )
            value = lower[name.lower()]
        headers[name] = check_header_value(index, value)
    key = target.client_key_pem
    if config.client_certificate_pem and not key:
        unchanged = before is not None and (
            before.client_certificate_pem == config.client_certificate_pem
        )
        if not (same and unchanged and known.client_key_pem):
            raise invalid_field(f"{field}.clientKeyPem", "must be given with a new certificate")
        key = known.client_key_pem
    if key and not config.client_certificate_pem:
        raise invalid_field(f"{field}.clientCertificatePem", "must be given with its private key")
    return Secrets(known.signing, headers, key)


def _check_certificates(config: Config, secrets: Secrets) -> None:
    """Refuses certificates that could not be used.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    if isinstance(config, Syslog) and config.transport is not Transport.TLS:
        return
    field = "webhook" if isinstance(config, Webhook) else "syslog"
    try:
        client_context(config.ca_pem, config.client_certificate_pem, secrets.client_key_pem)
    except ValueError as broken:
        if str(broken) == "caPem":
            raise invalid_field(f"{field}.caPem", "must be certificates in PEM") from None
        raise invalid_field(
            f"{field}.clientCertificatePem",
            "must be a certificate in PEM, and clientKeyPem its private key without a passphrase",
        ) from None
    # Alerts tell of their ends. OpenSSL takes some that nobody can tell the end of.
    for name, pem in (
        ("caPem", config.ca_pem),
        ("clientCertificatePem", config.client_certificate_pem),
    ):
        try:
            if pem:
                first_end_of(pem.encode("ascii", "ignore"))
        except ValueError:
            raise invalid_field(
                f"{field}.{name}", "must be X.509 certificates of version 3 with valid dates"
            ) from None
