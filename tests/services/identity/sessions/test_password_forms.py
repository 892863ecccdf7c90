"""A password is the same however a system spells it, and what release 0.1.0 stored goes on."""

from __future__ import annotations

import unicodedata

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.v1 import identity_pb2 as pb
from servicekit.security.passwords import (
    PasswordError,
    PasswordHashes,
    hash_password,
    prepare,
    verify_password,
)
from tests.support.identity import OWNER, PASSWORD, Identity, identity, refused

__all__ = ["identity"]  # the fixture

COMPOSED = unicodedata.normalize("NFC", "Grüße aus Zürich né")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
FULL_WIDTH = "\uff41\uff55\uff53"
WIDE = COMPOSED.replace("aus", FULL_WIDTH).replace(" ", "\u3000")
assert len({COMPOSED, DECOMPOSED, WIDE}) == 3


@given(st.text(min_size=1))
def test_the_prepared_form_is_one_for_all_spellings(text: str) -> None:
    """Composed, decomposed and prepared texts have one form; it is stable; spaces are ASCII's;
    control characters have none."""
    try:
        form = prepare(text)
    except PasswordError:
        assert any(unicodedata.category(c) in {"Cc", "Cs", "Cn"} for c in text)
        return
    assert not any(unicodedata.category(c) == "Cc" for c in text)
    assert prepare(form) == form
    for name in ("NFC", "NFD", "NFKC", "NFKD"):
        assert prepare(unicodedata.normalize(name, text)) == form
    assert not any(unicodedata.category(c) == "Zs" and c != " " for c in form)


async def stored(identity: Identity) -> PasswordHashes:
    connection = await identity.database.superuser()
    try:
        row = await connection.fetchrow(
            "SELECT password_hash, prepared_hash FROM identity.account WHERE email = $1", OWNER
        )
    finally:
        await connection.close()
    assert row is not None
    return PasswordHashes(row["password_hash"], row["prepared_hash"])


async def as_release_0_1_0(identity: Identity, password: str) -> None:
    """Stores a password as that release does."""
    connection = await identity.database.superuser()
    try:
        await connection.execute(
            "UPDATE identity.account SET password_hash = $2 WHERE email = $1",
            OWNER,
            hash_password(password),
        )
    finally:
        await connection.close()


async def refuses(identity: Identity, password: str) -> bool:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.login(password=password)
    return error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def change(identity: Identity, current: str, new: str) -> None:
    session = await identity.as_user(password=current)
    await identity.auth.ChangePassword(
        pb.ChangePasswordRequest(current_password=current, new_password=new), metadata=session
    )


async def test_accents_typed_on_another_system_are_right(identity: Identity) -> None:
    """Composed and decomposed letters, full-width letters and their spaces are one password; other
    letters and another case are not. Release 0.1.0 reads what was typed."""
    first = await stored(identity)
    assert first.prepared == first.typed  # one hash where the forms are the same
    await change(identity, PASSWORD, DECOMPOSED)
    for spelling in (COMPOSED, DECOMPOSED, WIDE):
        await identity.login(password=spelling)
    for other in (COMPOSED.replace("ü", "u"), COMPOSED.upper(), f"{COMPOSED} ", PASSWORD):
        assert await refuses(identity, other)
    assert verify_password((await stored(identity)).typed, DECOMPOSED)
    await change(identity, WIDE, PASSWORD)
    assert await refuses(identity, COMPOSED)


async def test_what_release_0_1_0_stored_is_renewed_by_a_login(identity: Identity) -> None:
    """It verifies as it was typed; from the first login on in every spelling, and that release
    still knows it. A password that it sets later ends both hashes of the one before."""
    await as_release_0_1_0(identity, DECOMPOSED)
    old = await stored(identity)
    assert old.prepared is None
    assert await refuses(identity, COMPOSED)
    assert await stored(identity) == old
    await identity.login(password=DECOMPOSED)
    now = await stored(identity)
    assert now.typed == old.typed
    assert now.prepared not in {None, now.typed}
    await identity.login(password=COMPOSED)
    assert await stored(identity) == now

    await as_release_0_1_0(identity, PASSWORD)
    assert (await stored(identity)).prepared is None
    assert await refuses(identity, COMPOSED)
    await identity.login()
    plain = await stored(identity)
    assert plain.prepared == plain.typed

    strange = "a tab\tis no password now"
    await as_release_0_1_0(identity, strange)
    for _ in range(2):
        await identity.login(password=strange)
    assert await refuses(identity, strange.replace("\t", " "))
    assert (await stored(identity)).prepared is None


@pytest.mark.parametrize(
    ("password", "rule"),
    [
        ("a tab\tis no password", "U+0009"),
        ("nor is\u0085a control", "U+0085"),
        ("nobody knows \U000e0fff", "U+E0FFF"),
        ("n\u0303" * 8, "must have at least 15 characters"),
    ],
)
async def test_a_password_that_cannot_be_typed_again_is_refused(
    identity: Identity, password: str, rule: str
) -> None:
    """Control characters and unknown ones, and sixteen that are eight letters with marks."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await change(identity, PASSWORD, password)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "newPassword" in str(refused(error))
    assert rule in refused(error)["message"]
    await identity.login()
