"""What holds a secret does not print it: a log line or a traceback may show any object."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError

import auditlog
import cli
import contract
import deploy
import servicekit
import services
from cli.client import Access
from contract.access import Role
from deploy.launcher.process import ProcessSpec
from servicekit.keys.ring import RingKey
from servicekit.security.signing import Signer, new_seed
from servicekit.settings import ServiceSettings
from services.enrollment.tokens.keys import parse_pre_shared_key
from services.identity.sessions.domain import OpenSession
from services.identity.users.domain import User
from services.policy.authoring.document import Document, Network, Vpn, Wifi

SECRET = "hunter2-hunter2"
_NAMES = re.compile(
    r"(.*_)?(secret|secrets|password|passphrase|passphrases|seed|sealed_seed|token|tokens"
    r"|refresh_token|pre_shared_key|psk|dsn|database_url|nats_url|env|authored|document|envelope"
    r"|private_key|master_key|password_hash|secret_hash|invitation_hash)"
)
_TEXTS = re.compile(r"\b(str|bytes|Mapping|dict)\b")
_HARMLESS = {
    # A policy that was compiled, on its way to be encoded; its own secrets are masked.
    "services.policy.authoring.document.Document",
    # The names of tables.
    "servicekit.data.backup.Tables",
    # The names of the secrets that were made.
    "services.policy.sets.moving.Moved",
    # The names of secrets.
    "cli.set_files.Set",
    "services.policy.sets.variables.Named",
    # Where a list goes on.
    "servicekit.rpc.persons.PersonPage",
    "services.audit.person_data.service._Page",
}


def _classes() -> Iterator[type[Any]]:
    seen = set()
    for package in (auditlog, contract, servicekit, services, cli, deploy):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ == found.name and kind not in seen:
                    seen.add(kind)
                    yield kind


def _shown(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """The fields that a class prints, with their types as written."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.repr and kind.__repr__ is not object.__repr__:
                yield field.name, str(field.type)
    elif issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            if info.repr:
                yield name, str(info.annotation)


def test_no_class_prints_a_field_that_is_named_like_a_secret() -> None:
    """A new one has to be masked (`repr=False`), or to be named in the list above."""
    shown = [
        f"{kind.__module__}.{kind.__qualname__}.{name}"
        for kind in _classes()
        for name, type_ in _shown(kind)
        if _NAMES.fullmatch(name) and _TEXTS.search(type_) and "Path" not in type_
    ]
    assert [name for name in shown if name.rpartition(".")[0] not in _HARMLESS] == []


_USER = User(UUID(int=1), UUID(int=2), "a@b.example", Role.OWNER, "active", datetime.now(UTC))


@pytest.mark.parametrize(
    "holder",
    [
        RingKey(
            Signer(bytes(32)).public,
            "users",
            "ed25519",
            SECRET.encode(),
            created_at=datetime.now(UTC),
            signs_from=datetime.now(UTC),
        ),
        OpenSession(_USER, SECRET, SECRET, datetime.now(UTC)),
        parse_pre_shared_key(f"school:{SECRET}"),
        Document(
            network=Network(
                wifi=(Wifi(ssid="s", passphrase=SECRET, eap={"password": SECRET}),),
                vpns=(Vpn(name="v", data={"x": SECRET}, secrets={"y": SECRET}),),
            )
        ),
        Access("https://localhost", None, "a@b.example", SECRET),
        ProcessSpec("x", ("true",), print, None, {"PASSWORD": SECRET}),  # type: ignore[arg-type] # never run
        ServiceSettings(
            grpc_listen="unix:/x",
            internal_listen="unix:/y",
            database_url=f"postgresql://u:{SECRET}@h/d",
            nats_url=f"nats://u:{SECRET}@h",
        ),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_holders_of_secrets_print_none(holder: object) -> None:
    """By `repr`, by `str`, and within another object."""
    for text in (repr(holder), str(holder), f"{[holder]!r}"):
        assert SECRET not in text


def test_a_new_signing_key_prints_no_seed() -> None:
    """Nor as the numbers or the digits of its bytes."""
    seed = new_seed()
    signer = Signer(seed)
    for text in (repr(signer), repr(vars(signer)), repr(signer.public)):
        assert seed.hex() not in text
        assert repr(seed) not in text


def test_wrong_settings_are_named_without_their_values() -> None:
    """An error at the start goes to the log."""
    with pytest.raises(ValidationError) as error:
        ServiceSettings(
            grpc_listen="unix:/x",
            internal_listen="unix:/y",
            database_url=f"postgresql://u:{SECRET}@h/d",
            log_level=SECRET,  # type: ignore[arg-type] # wrong
        )
    assert "log_level" in str(error.value)
    assert SECRET not in str(error.value)
