"""Sessions when somebody attacks them: guessing, races, and what is left behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import UUID

import grpc
import pytest

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.rpc.channels import open_channel
from services.identity.__main__ import build
from services.identity.sessions import store
from services.identity.settings import IdentitySettings
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.identity import OWNER, PASSWORD, Identity, claims, identity, refused

__all__ = ["identity"]  # the fixture


async def _wrong(identity: Identity, email: str = OWNER) -> float:
    """The seconds that a refused login takes."""
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.login(email, "wrong password")
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return time.monotonic() - started


async def _failures(identity: Identity) -> int:
    names = [event["data"]["action"] for event in await identity.events()]
    return names.count("identity.login_failed")


async def test_the_time_of_an_answer_tells_nothing(identity: Identity) -> None:
    """A failure of a user is recorded, one of nobody is not; both answers take their time."""
    assert await _wrong(identity) > 0.25
    assert await _wrong(identity, "nobody@school.example") > 0.25
    assert await _failures(identity) == 1


async def test_a_guess_counts_although_its_answer_is_not_awaited(identity: Identity) -> None:
    """Whoever hangs up when the answer is late is slowed down like everybody else."""
    for count in range(1, 6):
        call = identity.auth.Login(
            pb.LoginRequest(email=OWNER, password="wrong password"), metadata=callers.anonymous()
        )
        while (await _failures(identity)) < count:
            await asyncio.sleep(0.01)
        call.cancel()
    assert await _wrong(identity) > 0.5 + 0.25


async def test_two_tabs_that_refresh_at_once_both_stay_logged_in(identity: Identity) -> None:
    """Each gets a token of its own, in the same session; both go on."""
    session = await identity.login()
    request = pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    tabs = await asyncio.gather(*(identity.auth.RefreshSession(request) for _ in range(2)))
    assert len({session.refresh_token, *(tab.refresh_token for tab in tabs)}) == 3
    for tab in tabs:
        found = await identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=tab.refresh_token)
        )
        assert claims(found.token)["sid"] == claims(session.token)["sid"]


async def test_a_refresh_token_that_comes_again_later_ends_the_session(
    identity: Identity,
) -> None:
    """A token that two parties have was stolen; no use within the grace lengthens it."""
    session = await identity.login()
    request = pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    tabs = [await identity.auth.RefreshSession(request)]
    await age_tokens(identity, 29)
    tabs.append(await identity.auth.RefreshSession(request))
    await age_tokens(identity, 2)
    for token in (session, *tabs):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.auth.RefreshSession(
                pb.RefreshSessionRequest(refresh_token=token.refresh_token)
            )
        assert refused(error)["details"][0]["reason"] == "WRONG_REFRESH_TOKEN"
    names = [event["data"]["action"] for event in await identity.events()]
    assert names.count("identity.refresh_token_reused") == 1


async def age_tokens(identity: Identity, seconds: int) -> None:
    """As if refresh tokens had been used so much earlier."""
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "UPDATE identity.refresh_token SET used_at = used_at - make_interval(secs => $1)",
            seconds,
        )
    finally:
        await connection.close()


async def test_ended_sessions_are_forgotten(identity: Identity) -> None:
    """A week after its end a session and its tokens are gone, and one that is open is not."""
    ended, kept = await identity.login(), await identity.login()
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "UPDATE identity.session SET ended_at = now() - interval '8 days' WHERE id = $1",
            UUID(claims(ended.token)["sid"]),
        )
        before = await connection.fetchval("SELECT now() - interval '7 days'")
        await store.forget_sessions(connection, before)  # type: ignore[arg-type]  # not pooled
        left = await connection.fetch("SELECT id FROM identity.session")
        tokens = await connection.fetchval("SELECT count(*) FROM identity.refresh_token")
    finally:
        await connection.close()
    assert [str(row["id"]) for row in left] == [claims(kept.token)["sid"]]
    assert tokens == 1


async def test_a_cursor_of_another_server_begins_anew(identity: Identity) -> None:
    """After a restore into a new server, which counts transactions from the start again."""
    last = UUID(int=(1 << 128) - 1)
    feed = await identity.internal.ListAccessChanges(
        pb.ListAccessChangesRequest(cursor=f"{1 << 40}:{last}:0/{1 << 40}:{last}:0")
    )
    assert [t.code for t in feed.tenants] == ["root", "default"]
    again = await identity.internal.ListAccessChanges(
        pb.ListAccessChangesRequest(cursor=feed.next_cursor)
    )
    assert list(again.tenants) == []


async def test_the_first_password_is_needed_once(
    make_kit: MakeKit, serve: ServeService, tmp_path: Path
) -> None:
    """Its file may be deleted after the first start."""
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    kit = await make_kit(
        "identity", IdentitySettings, admin_email=OWNER, admin_password_file=secret
    )
    await (await serve(kit, build)).stop(0)
    secret.unlink()
    kit = await make_kit(
        "identity", IdentitySettings, admin_email=OWNER, admin_password_file=secret
    )
    await asyncio.wait_for(serve(kit, build), 60)
    async with grpc.aio.insecure_channel(kit.settings.grpc_listen) as public:
        session = await rpc.AuthServiceStub(public).Login(
            pb.LoginRequest(email=OWNER, password=PASSWORD), metadata=callers.anonymous()
        )
    assert session.email == OWNER


async def test_a_service_that_has_started_answers_users(
    make_kit: MakeKit, serve: ServeService, tmp_path: Path
) -> None:
    """It knows the tenants and the ended sessions before it says that it serves."""
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    kit = await make_kit(
        "identity", IdentitySettings, admin_email=OWNER, admin_password_file=secret
    )
    await serve(kit, build)
    assert kit.tenants.follower.synced


async def test_calls_from_outside_do_not_keep_the_services_out(
    make_kit: MakeKit, serve: ServeService, tmp_path: Path
) -> None:
    """A service that is full for its callers still tells the others who is cut off."""
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    kit = await make_kit(
        "identity", IdentitySettings, admin_email=OWNER, admin_password_file=secret, max_calls=1
    )
    await serve(kit, build)
    async with (
        grpc.aio.insecure_channel(kit.settings.grpc_listen) as public,
        open_channel(kit.settings.internal_listen, "policy") as internal,
    ):
        auth = rpc.AuthServiceStub(public)
        wrong = pb.LoginRequest(email=OWNER, password="wrong password")
        calls = [
            asyncio.ensure_future(auth.Login(wrong, metadata=callers.anonymous())) for _ in range(2)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        feed = await rpc.IdentityInternalServiceStub(internal).ListAccessChanges(
            pb.ListAccessChangesRequest()
        )
        assert feed.tenants
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {error.code() for error in ended if isinstance(error, grpc.aio.AioRpcError)} == {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
