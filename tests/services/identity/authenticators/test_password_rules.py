"""Which passwords may be set, and the operator's list of those that were stolen elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.authenticators.breached import BreachedPasswords
from services.identity.authenticators.password_rules import (
    BREACHED,
    COMMON,
    LEAST,
    NAMES,
    REPEATS,
    SAME,
    Person,
    fault_of,
)
from services.identity.pages.texts import TEXTS, rule_text
from tests.conftest import MakeKit, ServeService
from tests.support.identity import PASSWORD, identity, refused, running
from tests.support.servers import TestDatabase

__all__ = ["identity"]  # the fixture

_PERSON = Person("anna.berg@northschool.example", "Nordschule Müllerstadt", "north")

_REFUSED = {
    "aaaaaaaaaaaaaaaa": REPEATS,
    "abcabcabcabcabcabc": REPEATS,
    "abababbbabababaabb": REPEATS,
    "abcdefghijklmnopqr": REPEATS,
    "123456789012345678": REPEATS,
    "987654321987654321": REPEATS,
    "qwertzuiopasdfghjkl": REPEATS,
    "QWERTYUIOPASDFGHJKL": REPEATS,
    "1qaz1qaz1qaz1qaz": REPEATS,
    "secretsecretsecret": REPEATS,
    "aaaaabbbbbcccccdddddeeeeefffff": REPEATS,
    "anna.berg@northschool": NAMES,
    "AnnaBerg20262026": NAMES,
    "Nordschule-2026-2027": NAMES,
    "nordschule12345678": NAMES,
    "muellerstadt2026!": NAMES,
    "Müllerstadt 2026!": NAMES,
    "mullerstadt12345!": NAMES,
    "Evergreen12345678": NAMES,
    "3v3rgr33n2026!!!!": NAMES,
    "northevergreen2026": NAMES,
    "evergreenPassword1": NAMES,
    "password1234567890": COMMON,
    "P@ssw0rd2026!2027": COMMON,
    "Sommerferien 2026": COMMON,
    "Schule2026!!2026!!": COMMON,
    "schuleschule 2026-2027": COMMON,
    "Schüler2026Schüler": COMMON,
    "Schueler-2026-2027": COMMON,
    "Klassenzimmer1234": COMMON,
    "Principal20262027": COMMON,
    "HighSchool-2026-27": COMMON,
    "welcome_teachers!!": COMMON,
    "willkommen24121985": COMMON,
}
_TAKEN = (
    "correct horse battery staple",
    "vier Tassen Tee am Montag",
    "Klassenfahrt Kreide Sommerferien",
    "kZ4!pQ9wLm2#xT7v",
    "anna likes seven green bicycles",
    "my password is a riddle wrapped",
    "8391 5720 4468 1193",
    PASSWORD,
)


@pytest.mark.parametrize("password", _REFUSED)
def test_what_is_guessed_first_is_refused(password: str) -> None:
    """Repetition, rows of keys, names of the account, and common words of schools, with digits."""
    assert fault_of(password, _PERSON) == _REFUSED[password]


@pytest.mark.parametrize("password", _TAKEN)
def test_what_is_long_and_nobodys_is_taken(password: str) -> None:
    """Also with a name or a common word in it."""
    assert fault_of(password, _PERSON) is None


def test_a_second_factor_lets_a_password_be_shorter() -> None:
    """Twelve characters instead of those that the operator wants of a password alone."""
    short = "kZ4!pQ9wLm2#"
    assert len(short) == LEAST
    assert fault_of(short, _PERSON) == "must have at least 15 characters"
    assert fault_of(short, _PERSON, least_alone=14) == "must have at least 14 characters"
    assert fault_of(short, Person(_PERSON.email, second_factor=True)) is None


@given(st.text(max_size=300))
def test_any_text_is_judged(text: str) -> None:
    """Whatever it is, and whoever has such a name; and the pages say it in German."""
    fault = fault_of(text, Person(f"{text}@x.example", text, text), least_alone=1)
    if fault is not None:
        assert rule_text(TEXTS["de"], fault) != fault


def _list(path: Path, passwords: list[str], end: str) -> BreachedPasswords:
    digests = sorted(hashlib.sha1(p.encode()).hexdigest().upper() for p in passwords)
    path.write_text("".join(f"{d}{f':{n}' if n % 3 else ''}{end}" for n, d in enumerate(digests)))
    return BreachedPasswords(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_a_stolen_password_is_found(tmp_path: Path, count: int, end: str) -> None:
    """The first, the last, and each between; and none that is not there."""
    stolen = [f"stolen {n}" for n in range(count)]
    found = _list(tmp_path / "list", stolen, end)
    assert all(found.has(password) for password in stolen)
    assert not any(found.has(f"mine {n}") for n in range(1000))
    assert found.has("mine", stolen[-1])


@pytest.mark.parametrize("text", ["", "password\n", "a" * 39, "g" * 40])
def test_what_is_no_such_list_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    """Rather than to look for nothing."""
    (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match="does not begin with a SHA-1 digest"):
        BreachedPasswords(tmp_path / "list")


async def test_the_rules_hold_wherever_a_password_is_set(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """By an admin, by oneself, by an invitation; the field is named and nothing is changed. Who
    has such a password since before goes on with it."""
    stolen = "a stolen password of somebody"
    _list(tmp_path / "list", [stolen], "\n")
    async with running(
        make_kit, serve, database, tmp_path, breached_passwords=tmp_path / "list", password_min=16
    ) as identity:
        owner = await identity.as_user()
        org = await identity.org(owner, "Nordschule")

        async def wrong(password: str, rule: str) -> None:
            new = pb.CreateUserRequest(
                email="berta@x.example", role="Admin", org_id=org.id, password=password
            )
            change = pb.ChangePasswordRequest(current_password=PASSWORD, new_password=password)
            accept = pb.AcceptInvitationRequest(invitation_token=token, password=password)
            for field, call in (
                ("password", identity.users.CreateUser(new, metadata=owner)),
                ("newPassword", identity.auth.ChangePassword(change, metadata=admin)),
                ("password", identity.auth.AcceptInvitation(accept)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call
                assert refused(error)["message"] == f"{field}: {rule}"

        made, admin = await identity.user(owner, Role.ADMIN, org.id, "berta.blum@x.example")
        invited = await identity.users.CreateUser(
            pb.CreateUserRequest(email="berta.bach@x.example", role="Admin", org_id=org.id),
            metadata=owner,
        )
        token = invited.invitation_token
        await wrong("fifteen letters", "must have at least 16 characters")
        await wrong("nordschule 2026 2027", NAMES)
        await wrong("Sommerferien 2026", COMMON)
        await wrong(stolen, BREACHED)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.auth.ChangePassword(
                pb.ChangePasswordRequest(current_password=PASSWORD, new_password=PASSWORD),
                metadata=admin,
            )
        assert refused(error)["message"] == f"newPassword: {SAME}"
        await identity.login(made.email)
        names = [event["data"]["action"] for event in await identity.events()]
        assert "identity.password_changed" not in names

        (tmp_path / "list").unlink()
        session = await identity.auth.AcceptInvitation(
            pb.AcceptInvitationRequest(invitation_token=token, password=stolen)
        )
        assert session.email == invited.email
    # A stricter rule later ends no password.
    async with running(make_kit, serve, database, tmp_path, password_min=64) as identity:
        await identity.login(made.email)
