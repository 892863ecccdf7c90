"""Off, required, and off again: who can log in, goes on logging in, and no token ends early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest

from cli import fips
from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.ids import now
from servicekit.security import fips as fips_module
from servicekit.security import jwt, mode
from servicekit.security.sealing import read_master_key
from tests.conftest import MakeKit, ServeService
from tests.support import backups
from tests.support.identity import OWNER, PASSWORD, Identity, as_caller, running
from tests.support.servers import TestDatabase


async def _hashes(database: TestDatabase) -> dict[str, str]:
    """The suite of each user's hash."""
    connection = await database.superuser()
    try:
        rows = await connection.fetch("SELECT email, password_hash FROM identity.account")
    finally:
        await connection.close()
    return {row["email"]: row["password_hash"].split("$")[1] for row in rows}


def _algorithm(session: pb.Session) -> str:
    return str(jwt.header(session.token)["alg"])


async def test_nothing_is_lost_on_the_way_there_and_back(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With replicas of both kinds side by side: hashes change at login, keys by rotation, the rest
    by the command. In FIPS mode one who has not logged in meanwhile cannot, until a new password
    or the way back."""
    ahead = timedelta()

    def clock() -> datetime:
        return now() + ahead

    @asynccontextmanager
    async def replica(name: str) -> AsyncIterator[Identity]:
        # The first one is where all others look for identity.
        places = {
            f"{kind}_listen": f"unix:{tmp_path}/{name}.{kind}"
            for kind in ("grpc", "internal", "http")
            if name != "a"
        }
        async with running(make_kit, serve, database, tmp_path, clock=clock, **places) as found:
            yield found

    async with replica("a") as off:
        owner = await off.as_user()
        session = await off.login()
        assert _algorithm(session) == "EdDSA"
        anna, _ = await off.user(owner, Role.ADMIN)
        assert set((await _hashes(database)).values()) == {"argon2id"}

        monkeypatch.setenv(mode.SUITES, mode.APPROVED)
        async with replica("b") as both:
            await both.login()
            assert await _hashes(database) == {OWNER: "pbkdf2-sha256", anna.email: "argon2id"}
            for purpose in ("users", "devices", "tokens"):
                made = await both.keys.RotateTokenKey(
                    pb.RotateTokenKeyRequest(purpose=purpose), metadata=owner
                )
                assert made.algorithm == "es256"
            # The start has sealed the keys anew.
            done = await fips._migrate(backups.target(database), _key(database))
            assert (done.sealed, done.closed) == (0, [])
            left = [
                one for one in await fips._plan(backups.target(database), _key(database)) if one.old
            ]
            assert {one.what for one in left if one.blocks} == {"passwords of users: active"}
            ahead = timedelta(seconds=61)
            newer = await both.login()
            assert _algorithm(newer) == "ES256"
            keys = (await both.keys.GetJwks(pb.GetJwksRequest(), metadata=owner)).keys
            assert sorted(key.alg for key in keys) == ["ES256"] * 3 + ["EdDSA"] * 3
            assert {key.HasField("y") for key in keys if key.kty == "EC"} == {True}
            # One that writes as before logs in who has the other hash, and renews nothing wrongly.
            monkeypatch.delenv(mode.SUITES)
            await off.keys.ListTokenKeys(pb.ListTokenKeysRequest(), metadata=owner)

    # There is no module here: `make test-fips` has one.
    monkeypatch.setattr(fips_module, "require", lambda: fips_module.Module(*"mvbfso"))
    monkeypatch.setattr(mode, "_required", True)
    async with replica("c") as required:
        third = await required.login()
        assert _algorithm(third) == "ES256"
        # A session of before goes on.
        for older in (session, newer):
            await required.auth.GetSession(pb.GetSessionRequest(), metadata=as_caller(older.token))
            await required.auth.RefreshSession(
                pb.RefreshSessionRequest(refresh_token=older.refresh_token),
                metadata=as_caller(older.token),
            )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await required.login(anna.email)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    monkeypatch.setattr(mode, "_required", False)
    async with replica("d") as again:
        await again.login(anna.email, PASSWORD)
        await again.login()
        # In the way of an installation that is off.
        assert set((await _hashes(database)).values()) == {"argon2id"}
        await again.auth.GetSession(pb.GetSessionRequest(), metadata=as_caller(third.token))


def _key(database: TestDatabase) -> bytes:
    return read_master_key(database.servers.home.secrets / "master_key")
