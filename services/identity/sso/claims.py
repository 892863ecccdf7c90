"""What a provider's tokens say.

OpenID Connect Core 1.0, section 3.1.3.7; OpenID Connect Back-Channel Logout 1.0, section 2.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from servicekit.security.digests import equal
from servicekit.texts import normal_email
from services.identity.sso.domain import EMAIL_CLAIM, Provider

LEEWAY: Final = timedelta(seconds=60)
"""By how much the clock of a provider may differ."""
OLDEST: Final = timedelta(minutes=10)
"""How old a token may be when it arrives."""
ID_TOKEN_KINDS: Final = frozenset({"jwt", "id_token+jwt"})
LOGOUT_TOKEN_KINDS: Final = frozenset({"jwt", "logout+jwt"})
_LOGOUT: Final = "http://schemas.openid.net/event/backchannel-logout"
_MOST_GROUPS: Final = 10_000
_LONGEST_GROUP: Final = 1024
_LONGEST_SUBJECT: Final = 255
_LONGEST_SID: Final = 255
_LONGEST_EMAIL: Final = 254


class RefusedError(Exception):
    """A provider's answer is not taken; `reason` is UPPER_SNAKE, for the log."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Claims:
    """What is taken of an ID token, and of the user-info endpoint."""

    subject: str
    email: str
    """Normalised; empty when there is none that can be used."""
    email_verified: bool | None
    """`None` where the provider does not say so of this address."""
    groups: frozenset[str] | None
    """`None` where the provider does not say, or says that there are too many to say."""
    sid: str
    """What the provider calls its session."""
    authenticated_at: datetime | None = None
    """When the person showed the provider who it is; `None` where the provider does not say."""


@dataclass(frozen=True, slots=True)
class Logout:
    """What a logout token says: a session, or all of a person's."""

    subject: str
    sid: str
    id: str
    expires_at: datetime


def check_id_token(
    provider: Provider, token: Mapping[str, Any], nonce: str, at: datetime
) -> Mapping[str, Any]:
    """Refuses an ID token that is not this login's; answers it.

    Raises:
        RefusedError: ISSUER, AUDIENCE, EXPIRED, ISSUED, NONCE, SUBJECT, HOSTED_DOMAIN or TENANT.
    """
    _check_sender(provider, token)
    _check_times(token, at, expires=True)
    said = token.get("nonce")
    if not isinstance(said, str) or not equal(said.encode(), nonce.encode()):
        raise RefusedError("NONCE")
    subject = token.get("sub")
    if not subject or not _is_name(subject, _LONGEST_SUBJECT):
        raise RefusedError("SUBJECT")
    if provider.hosted_domain and token.get("hd") != provider.hosted_domain:
        raise RefusedError("HOSTED_DOMAIN")
    if provider.entra_tenant and token.get("tid") != provider.entra_tenant:
        raise RefusedError("TENANT")
    return token


def lacks(provider: Provider, token: Mapping[str, Any]) -> bool:
    """Whether the user-info endpoint is to be asked for what an ID token leaves out."""
    if not _text(token, provider.email_claim):
        return True
    if not provider.groups or _are_elsewhere(provider, token):
        return False
    return _claim(token, provider.groups_claim) is None


def claims_of(
    provider: Provider, token: Mapping[str, Any], more: Mapping[str, Any] | None
) -> Claims:
    """What is taken of a checked ID token; the user-info endpoint only adds to it.

    Raises:
        RefusedError: USERINFO_SUBJECT when the endpoint tells of somebody else; GROUPS when the
            claim is no list of names.
    """
    if more is not None and more.get("sub") != token["sub"]:
        raise RefusedError("USERINFO_SUBJECT")
    whole = {**(more or {}), **token}
    email = _text(whole, provider.email_claim)
    sid = token.get("sid", "")
    return Claims(
        subject=str(token["sub"]),
        email=normal_email(email) if _is_name(email, _LONGEST_EMAIL) else "",
        email_verified=_verified(provider, token, more or {}),
        groups=_groups(provider, whole, token),
        sid=sid if _is_name(sid, _LONGEST_SID) else "",
        authenticated_at=_authenticated_at(token),
    )


def check_logout(provider: Provider, token: Mapping[str, Any], at: datetime) -> Logout:
    """What a logout token says, if it is one for this installation.

    Raises:
        RefusedError: ISSUER, AUDIENCE, EXPIRED, ISSUED, EVENT, NONCE, ID or SUBJECT.
    """
    _check_sender(provider, token)
    # Those of before the final specification do not expire; they are taken while they are new.
    _check_times(token, at, expires="exp" in token)
    events = token.get("events")
    if not isinstance(events, Mapping) or not isinstance(events.get(_LOGOUT), Mapping):
        raise RefusedError("EVENT")
    if "nonce" in token:
        raise RefusedError("NONCE")
    found = {name: token.get(name, "") for name in ("jti", "sub", "sid")}
    if not all(_is_name(one, _LONGEST_SID) for one in found.values()):
        raise RefusedError("SUBJECT")
    if not found["jti"]:
        raise RefusedError("ID")
    if not found["sub"] and not found["sid"]:
        raise RefusedError("SUBJECT")
    return Logout(found["sub"], found["sid"], found["jti"], at + OLDEST + 2 * LEEWAY)


def _check_sender(provider: Provider, token: Mapping[str, Any]) -> None:
    if token.get("iss") != provider.issuer:
        raise RefusedError("ISSUER")
    audience = token.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or provider.client_id not in audiences:
        raise RefusedError("AUDIENCE")
    party = token.get("azp")
    if (len(audiences) > 1 or party is not None) and party != provider.client_id:
        raise RefusedError("AUDIENCE", "it was issued to another client")


def _check_times(token: Mapping[str, Any], at: datetime, *, expires: bool) -> None:
    now = at.timestamp()
    leeway = LEEWAY.total_seconds()
    issued = _number(token, "iat")
    if issued is None or not now - OLDEST.total_seconds() - leeway <= issued <= now + leeway:
        raise RefusedError("ISSUED", "it was not issued just now; compare the clocks")
    if expires:
        until = _number(token, "exp")
        if until is None or until <= now - leeway:
            raise RefusedError("EXPIRED", "it has expired; compare the clocks")
    if "nbf" in token:
        since = _number(token, "nbf")
        if since is None or since > now + leeway:
            raise RefusedError("EXPIRED", "it is not valid yet; compare the clocks")


def _number(token: Mapping[str, Any], name: str) -> float | None:
    found = token.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if abs(found) < 1 << 53 else None


def _authenticated_at(token: Mapping[str, Any]) -> datetime | None:
    """The claim `auth_time`; one that is no time of ours is the oldest one."""
    if "auth_time" not in token:
        return None
    said = _number(token, "auth_time")
    try:
        return datetime.fromtimestamp(max(0.0, said or 0.0), UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name; else `a.b` is `b` inside `a`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _is_name(said: object, longest: int) -> bool:
    """Whether it is a text that may be stored and shown; an empty one is."""
    return isinstance(said, str) and len(said) <= longest and said.isprintable()


def _verified(provider: Provider, token: Mapping[str, Any], more: Mapping[str, Any]) -> bool | None:
    """What is said of the address: that it is verified counts for the claim `email` alone, and from
    the document that it stands in; that it is not, wherever it is said."""
    said = []
    for claims in (token, more):
        one = claims.get("email_verified")
        if isinstance(one, str):
            one = {"true": True, "false": False}.get(one.lower())
        said.append(one if isinstance(one, bool) else None)
    if False in said:
        return False
    if provider.email_claim != EMAIL_CLAIM:
        return None
    return said[0] if EMAIL_CLAIM in token else said[1]


def _text(claims: Mapping[str, Any], name: str) -> str:
    found = _claim(claims, name)
    return found.strip() if isinstance(found, str) else ""


def _names_elsewhere(token: Mapping[str, Any]) -> Mapping[str, Any]:
    """Claims that a token only points to (OpenID Connect Core, section 5.6.2): Microsoft Entra does
    so with more than 200 groups."""
    found = token.get("_claim_names")
    if isinstance(found, Mapping):
        return found
    return {"groups": ""} if token.get("hasgroups") is True else {}


def _are_elsewhere(provider: Provider, token: Mapping[str, Any]) -> bool:
    """Whether a token points to the claim with the groups; other claims of it stand."""
    names = _names_elsewhere(token)
    return provider.groups_claim in names or provider.groups_claim.split(".")[0] in names


def _groups(
    provider: Provider, whole: Mapping[str, Any], token: Mapping[str, Any]
) -> frozenset[str] | None:
    """The mapped groups that a person is in."""
    if _are_elsewhere(provider, token):
        return None
    found = _claim(whole, provider.groups_claim)
    if found is None:
        return None
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or len(names) > _MOST_GROUPS:
        raise RefusedError("GROUPS", "the groups are no list of names, or too many")
    if not all(isinstance(name, str) and len(name) <= _LONGEST_GROUP for name in names):
        raise RefusedError("GROUPS", "the groups are no list of names")
    return provider.groups.intersection(names)
