"""What is taken of tokens, and what is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.access import Role
from servicekit.ids import new_id
from services.identity.sources.domain import RoleMapping, Source
from services.identity.sso.claims import RefusedError, check_logout, claims_of, lacks
from services.identity.sso.domain import Provider

_AT = datetime(2026, 11, 30, tzinfo=UTC)
_TENANT = new_id()
PROVIDER = Provider(
    source=Source(
        id=new_id(),
        tenant_id=_TENANT,
        kind="sso",
        name="School",
        enabled=True,
        grace=timedelta(hours=12),
        created_at=_AT,
        updated_at=_AT,
    ),
    issuer="https://login.example",
    client_id="evergreen",
    sealed_secrets=b"",
    ca_pem="",
    scopes=("openid",),
    groups_claim="roles",
    email_claim="email",
    hosted_domain="",
    just_in_time=True,
    login_button=False,
    trusts_mfa=False,
    single_logout=False,
    mappings=(RoleMapping("admins", Role.ADMIN, _TENANT),),
)
UPN = replace(PROVIDER, email_claim="upn")
ANNA = {"sub": "anna"}
EMAIL = {"email": "anna@school.example"}


@pytest.mark.parametrize(
    ("provider", "token", "more", "verified"),
    [
        (PROVIDER, {**EMAIL, "email_verified": True}, None, True),
        (PROVIDER, {**EMAIL, "email_verified": "true"}, None, True),
        (PROVIDER, EMAIL, None, None),
        (PROVIDER, {}, {**EMAIL, "email_verified": True}, True),
        (PROVIDER, EMAIL, {"email": "eve@evil.example", "email_verified": True}, None),
        (PROVIDER, {"email_verified": True}, EMAIL, None),
        (PROVIDER, {**EMAIL, "email_verified": True}, {"email_verified": False}, False),
        (UPN, {"upn": "root@school.example", **EMAIL, "email_verified": True}, None, None),
        (UPN, {"upn": "root@school.example", "email_verified": False}, None, False),
    ],
)
def test_an_address_is_verified_where_it_stands(
    provider: Provider, token: dict[str, Any], more: dict[str, Any] | None, verified: bool | None
) -> None:
    """What a provider has verified is the claim `email`, of the same document."""
    told = claims_of(provider, ANNA | token, ANNA | more if more is not None else None)
    assert told.email_verified is verified


@pytest.mark.parametrize(
    "wrong", ["a\0@school.example", "a\n@b.example", "a" * 255, "\ud800@b.example"]
)
def test_an_address_that_cannot_be_shown_is_none(wrong: str) -> None:
    """It comes neither into the database nor into the log."""
    assert claims_of(PROVIDER, {**ANNA, "email": wrong}, None).email == ""


def test_a_session_with_a_name_that_cannot_be_shown_has_none() -> None:
    """And a logout that names one is refused."""
    assert claims_of(PROVIDER, {**ANNA, "sid": "a\0"}, None).sid == ""
    assert claims_of(PROVIDER, {**ANNA, "sid": "a"}, None).sid == "a"
    token = {
        "iss": PROVIDER.issuer,
        "aud": PROVIDER.client_id,
        "iat": _AT.timestamp(),
        "jti": "1",
        "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
    }
    assert check_logout(PROVIDER, token | {"sid": "a"}, _AT).sid == "a"
    for wrong in ({"sid": "a\0"}, {"sub": "a\0"}, {"sid": "a", "jti": "\0"}):
        with pytest.raises(RefusedError, match="SUBJECT"):
            check_logout(PROVIDER, token | wrong, _AT)


@pytest.mark.parametrize(
    "elsewhere", [{"_claim_names": {"groups": "src1"}}, {"hasgroups": True}, {}]
)
def test_too_many_groups_hide_no_other_claim(elsewhere: dict[str, Any]) -> None:
    """Microsoft Entra leaves out `groups` of people with many; their app roles stand in the token,
    and who has none any more has none."""
    token = {**ANNA, **EMAIL, **elsewhere}
    assert claims_of(PROVIDER, {**token, "roles": []}, None).groups == frozenset()
    assert claims_of(PROVIDER, {**token, "roles": ["admins"]}, None).groups == frozenset({"admins"})
    assert lacks(PROVIDER, token)
    by_groups = replace(PROVIDER, groups_claim="groups")
    assert claims_of(by_groups, {**token, "roles": ["admins"]}, None).groups is None
    assert lacks(by_groups, token) is not bool(elsewhere)
