"""What the other services ask identity for."""

from __future__ import annotations

from datetime import UTC
from typing import Final
from uuid import UUID

import asyncpg

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc, person_pb2
from servicekit.data.postgres import Database, Scope
from servicekit.data.quarantine import place, readable
from servicekit.errors import invalid_field
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.ids import Clock
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.persons import Person, person_records
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.identity.api_tokens import store as tokens_store
from services.identity.api_tokens.service import ApiTokens
from services.identity.facts import person_store
from services.identity.facts import store as fact_store
from services.identity.facts.store import CredentialPosition
from services.identity.mail.operations import MailOperations, ToldText
from services.identity.sessions import store as sessions_store
from services.identity.tenants import store as tenants_store
from services.identity.tenants.api import tenant_message
from services.identity.tenants.deletions import Deletions
from services.identity.tenants.store import Erasure
from services.identity.token_keys.tokens import TokenSigner

_FEED: Final = place("identity", "feed_access")


def _key(row: asyncpg.Record) -> object:
    return row["key"]


def _token_state(row: asyncpg.Record) -> pb.ApiTokenState:
    return pb.ApiTokenState(
        token_id=str(row["id"]),
        works_until=optional_timestamp(row["works_until"]),
        expires_at=timestamp(row["expires_at"]),
    )


class InternalApi(identity_pb2_grpc.IdentityInternalServiceServicer):
    """evergreen.v1.IdentityInternalService."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        signer: TokenSigner,
        deletions: Deletions,
        api_tokens: ApiTokens,
        mail: MailOperations,
        clock: Clock,
    ) -> None:
        self._database = database
        self._deletions = deletions
        self._api_tokens = api_tokens
        self._mail = mail
        self._changes = changes
        self._signer = signer
        self._clock = clock

    async def IssueDeviceToken(
        self, request: pb.IssueDeviceTokenRequest, context: Context
    ) -> pb.IssueDeviceTokenResponse:
        """Issues a token that is bound to one device."""
        token, expires_at = self._signer.device_token(
            request.device_id, request.tenant_id, request.token_version, self._clock()
        )
        return pb.IssueDeviceTokenResponse(device_token=token, expires_at=timestamp(expires_at))

    async def ReportTenantErasure(
        self, request: pb.ReportTenantErasureRequest, context: Context
    ) -> pb.ReportTenantErasureResponse:
        """Takes note of how far a service is with a tenant that is being deleted."""
        await self._deletions.report(
            request.tenant_id,
            Erasure(context.call.caller.id, request.rows, request.waiting_for, request.finished),
        )
        return pb.ReportTenantErasureResponse()

    async def ListAccessChanges(
        self, request: pb.ListAccessChangesRequest, context: Context
    ) -> pb.ListAccessChangesResponse:
        """Feeds the other services; the cursor holds one position per source."""
        tenants_at, _, sessions_at = request.cursor.partition("/")
        asks_for_tokens = request.HasField("api_token_cursor")

        async def read() -> tuple[FeedPage, FeedPage, FeedPage]:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                return (
                    await read_page(
                        connection,
                        tenants_store.TENANT_CHANGES,
                        Cursor.parse(tenants_at),
                        request.limit,
                    ),
                    await read_page(
                        connection,
                        sessions_store.ENDED_SESSIONS,
                        Cursor.parse(sessions_at),
                        request.limit,
                    ),
                    await read_page(
                        connection,
                        tokens_store.TOKENS,
                        Cursor.parse(request.api_token_cursor),
                        request.limit,
                    )
                    if asks_for_tokens
                    else FeedPage((), Cursor(), more=False),
                )

        tenants, sessions, tokens = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda found: any(page.rows for page in found)
        )
        return pb.ListAccessChangesResponse(
            tenants=readable(
                _FEED, tenants.rows, lambda row: tenant_message(tenants_store.tenant_of(row)), _key
            ),
            ended_sessions=readable(
                _FEED,
                sessions.rows,
                lambda row: pb.EndedSession(
                    session_id=str(row["id"]), ended_at=timestamp(row["ended_at"])
                ),
                _key,
            ),
            next_cursor=f"{tenants.cursor}/{sessions.cursor}",
            more=tenants.more or sessions.more or tokens.more,
            api_tokens=readable(_FEED, tokens.rows, _token_state, _key),
            next_api_token_cursor=str(tokens.cursor) if asks_for_tokens else None,
        )

    async def NoteTokenUses(
        self, request: pb.NoteTokenUsesRequest, context: Context
    ) -> pb.NoteTokenUsesResponse:
        """Takes note of which API tokens were used."""
        await self._api_tokens.note_uses(
            (UUID(use.token_id), use.used_at.ToDatetime(UTC), use.address) for use in request.uses
        )
        return pb.NoteTokenUsesResponse()

    async def ListUserFacts(
        self, request: pb.ListUserFactsRequest, context: Context
    ) -> pb.ListUserFactsResponse:
        """Answers a page of the users of a tenant."""
        tenant_id = UUID(request.tenant_id)
        after, size = asked_page(request, UUID)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            page = await fact_store.users(connection, tenant_id, after, size, self._clock())
        return pb.ListUserFactsResponse(
            users=[
                pb.UserFacts(
                    user_id=str(user.id),
                    email=user.email,
                    role=user.role,
                    status=user.status,
                    origin=user.origin,
                    factors=user.factors,
                    created_at=timestamp(user.created_at),
                    last_login_at=optional_timestamp(user.last_login_at),
                    open_sessions=user.open_sessions,
                    logins_known=user.logins_known,
                )
                for user in page.items
            ],
            next_page_token=page.token,
        )

    async def ListCredentialFacts(
        self, request: pb.ListCredentialFactsRequest, context: Context
    ) -> pb.ListCredentialFactsResponse:
        """Answers a page of the credentials of a tenant."""
        tenant_id = UUID(request.tenant_id)
        after, size = asked_page(request, CredentialPosition.read)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            page = await fact_store.credentials(connection, tenant_id, after, size)
        return pb.ListCredentialFactsResponse(
            credentials=[
                pb.CredentialFacts(
                    kind=one.kind,
                    credential_id=str(one.id),
                    name=one.name,
                    created_by=one.created_by,
                    created_at=timestamp(one.created_at),
                    expires_at=optional_timestamp(one.expires_at),
                    last_used_at=optional_timestamp(one.last_used_at),
                    revoked_at=optional_timestamp(one.revoked_at),
                )
                for one in page.items
            ],
            next_page_token=page.token,
        )

    async def SendMail(self, request: pb.SendMailRequest, context: Context) -> pb.SendMailResponse:
        """Has a mail of another service wait."""
        if not (request.user_ids or request.roles or request.addresses):
            raise invalid_field("userIds", "give userIds, roles or addresses")
        until = request.expires_at.ToDatetime(UTC) if request.HasField("expires_at") else None
        if until is not None and until <= self._clock():
            raise invalid_field("expiresAt", "is in the past")
        told = await self._mail.tell(
            UUID(request.tenant_id),
            request.key,
            [
                ToldText("de" if text.language == "de" else "en", text.subject, text.paragraphs)
                for text in request.texts
            ],
            user_ids=[UUID(user_id) for user_id in request.user_ids],
            roles=request.roles,
            addresses=request.addresses,
            times={name: at.ToDatetime(UTC) for name, at in request.times.items()},
            path=request.path,
            expires_at=until,
        )
        return pb.SendMailResponse(
            mail_is_on=self._mail.server is not None, queued=told.queued, full=told.full
        )

    async def FindPersonAccounts(
        self, request: person_pb2.FindPersonAccountsRequest, context: Context
    ) -> person_pb2.FindPersonAccountsResponse:
        """Answers the accounts of a person in a tenant."""
        tenant_id, person = UUID(request.tenant_id), Person(tuple(request.emails))
        async with self._database.system_transaction(
            "a person who moved has an account elsewhere; what is answered lies in the tenant"
        ) as connection:
            found = await person_store.accounts_of(connection, tenant_id, person)
        return person_pb2.FindPersonAccountsResponse(ids=map(str, found))

    async def ListPersonRecords(
        self, request: person_pb2.ListPersonRecordsRequest, context: Context
    ) -> person_pb2.ListPersonRecordsResponse:
        """Answers a page of what is held about a person."""
        return await person_records(self._database, "identity", person_store.TABLES, request)
