"""Loaded by Schemathesis: who calls, and what a generated request must not be.

`EVERGREEN_CONTRACT` names a JSON file: `tokens` (bearer tokens that take turns, so that no caller
reaches its rate limit), `devices` (the device id of each token that is a device's) and `spared`
(ids of what the run itself stands on).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

from services.identity.authenticators import password_rules
from services.policy.authoring.agent_rules import RULES

_CONTRACT: dict[str, Any] = json.loads(Path(os.environ["EVERGREEN_CONTRACT"]).read_text())
_TOKENS: list[str] = _CONTRACT["tokens"]
_DEVICES: dict[str, str] = _CONTRACT["devices"]
_SPARED: list[str] = _CONTRACT["spared"]

# A time that every rule takes: an enrollment token has to expire in the future, and not too far.
_NOW = datetime.now(UTC)
schemathesis.openapi.format(
    "date-time",
    st.timedeltas(min_value=timedelta(days=1), max_value=timedelta(days=1000)).map(
        lambda later: (_NOW + later).isoformat()
    ),
)

_PASSWORD_RULES = (
    password_rules.REPEATS,
    password_rules.NAMES,
    password_rules.COMMON,
    password_rules.BREACHED,
    password_rules.SAME,
)
_ABOUT_CONTENT = re.compile(
    "|".join(
        [
            "(currentPassword|password): is wrong",
            # One of the two has to be given.
            "mfa: must be given, or graceDays, or localLogin",
            "credential: is no new passkey: .*",
            # Which six digits an app shows, a schema does not know.
            "code: is none that your app shows .*",
            "etag: must be the etag in If-Match.*",
            # Nothing can move or change its kind; the console sends such fields back as they are.
            "reseller: cannot be changed",
            "parentId: cannot be changed",
            "timeZone: must be a time zone .*",
            "orgId: must stay what it is.*",
            "orgId: must be the same as tenantId.*",
            # Without it the caller's own tenant is meant, which need not be an organisation.
            "orgId: (must be an organisation.*|is required)",
            # A language of its own, of which a schema knows the length.
            "filter: at character .*",
            # URLs, names of hosts and certificates; which of them is needed depends on the kind.
            r"(webhook|syslog)(\..*)?: .*",
            r"(issuer|scopes\[\d+\]|hostedDomain|justInTime|clientSecret): .*",
            r"(urls\[\d+\]|caPem|userFilter|syncMinutes|graceHours|roleMappings.*): .*",
            "startAt: must be now, beginning or a time.*",
            "filter.outcomes: must be of .*",
            # One of several has to be given, or not beside another.
            "(name|role): give what to change: .*",
            # Scopes follow from the access table.
            "scopes: .*",
            "(role|orgId|serviceAccountId): must not be given with scimSourceId",
            "from: must be given",
            # How long the tree over the audit log is, and how its tiles are named.
            r"from: must be at most \d+",
            "path: .*",
            "email: is required with a password",
            "filter: a group with listed members has none",
            r"remove(Groups)?: .* is to be added, too",
            # Aliases of groups, and the grammar of labels' keys.
            r".*\[\d+\]: no group has the alias .*",
            r"(rows\[\d+\]\.)?labels.*: must .*",
            r"rows\[\d+\]\..*: is also on .*",
            # Both may be given, and have to agree.
            "etag: must be the etag in If-Match.*",
            # Time goes on, also while a generated request waits.
            "expiresAt: must be .*",
            # After spaces are taken away, a serial number has to be one.
            r"serials?(\[\d+\])?: (is required|is a placeholder .*|must not contain control .*)",
            r"serials?(\[\d+\])?: begins with .*",
            # Which parameters a kind of report takes, and names of time zones.
            r"(kind|timeZone|on|formats\[\d+\]|parameters\..*): .*",
            # The transcoder, about what is below a field that it does not know.
            ": Proto fields must have a name.",
            # A schema can say how long base64 is, not exactly how many bytes it holds.
            r".*: must have at most \d+ bytes",
            # Registers are the keys of a map, and may be given in any of three fields.
            r"pcrs: (must name a register|'.*' is no register .*)",
            r"pcrs\.\d+: must (be SHA-256 digests|have 1 to) .*",
            r"ukiSections: must (be of|have SHA-256 digests) .*",
            # A list of keys, as text.
            r"csv: (must begin with the header .*|line \d+ must be .*|is no CSV: .*)",
            # What is guessed first is no password.
            r"(password|newPassword): must have at least \d+ characters",
            *(rf"(password|newPassword): {re.escape(rule)}" for rule in _PASSWORD_RULES),
            r"(password|newPassword): must not contain the character U\+.*",
            # What devices could not apply; and a mask for what is not stored.
            *(rf"bundle\..*: {re.escape(rule.text)}( \(and .*)?" for rule in RULES),
            "bundle.*: stands for a stored value.*",
            # Fields of documents are a vocabulary of their own.
            r"merging(\..*)?: (must|is in the list twice).*",
            # Groups and devices of the policy's organisation, each once.
            "targets: only a policy of an organisation .*",
            # Entries of sets: as of the calls that change one policy or group, or two that meet.
            r"(policies|groups)\[\d+\]\..*",
            "something changed since the plan was made; .*",
            # A new policy needs both, and a stored one has its organisation.
            "policyId: is required, or orgId with a bundle",
            "orgId: must be the policy's",
            r"targets\..*: (is no|is in the list twice|must have at most) ?.*",
            # Which alerts a tenant has, and which numbers a kind takes.
            r"rules\[\d+\]\..*: .*",
            "inherit: must not be given with .*",
            # One of the two has to be given; names have letters, and addresses are none.
            "emails: give an address, or names",
            r"(emails|names)\[\d+\]: .*",
            # Batches grow up to everybody, and spans and windows are texts.
            r"plan(\..*)?: .*",
            r"\w+: counts with a plan only",
            r"(startsAt|freezes)(\[\d+\])?(\..*)?: .*",
            "reason: is required: .*",
            # Names of a catalogue, keys in PEM, and keys of a map.
            r"actions\[\d+\]: must be an action, or all of a context .*",
            "publicKeyPem: must be one Ed25519 public key in PEM",
            r"renamedGroups\[.*\]: must be a UUID",
        ]
    )
)
"""Refusals of requests that are well-formed."""


def _is_valid(case: schemathesis.Case) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive


class Callers:
    """Gives each request one of the tokens."""

    def __init__(self) -> None:
        self._turns = itertools.cycle(_TOKENS)
        self._lock = threading.Lock()

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> str:
        with self._lock:
            return next(self._turns)

    def set(self, case: schemathesis.Case, data: str, context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"
        # A device speaks for itself, or nothing but refusals would be tested.
        body = case.body
        if _is_valid(case) and isinstance(body, dict) and isinstance(body.get("device_id"), str):
            case.body = body | {"device_id": _DEVICES.get(data, body["device_id"])}


if _TOKENS:
    schemathesis.auth(refresh_interval=None)(Callers)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leaves alone what the run stands on: a caller that is disabled ends the test.

    A query parameter without a value is not given, so it breaks no rule.
    """
    if not _is_valid(case) and "" in (case.query or {}).values():
        return False
    return not any(value in _SPARED for value in (case.path_parameters or {}).values())


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Leaves page tokens out of valid requests: only a list's own answer makes one."""
    if _is_valid(case) and case.query:
        case.query.pop("pageToken", None)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,
    failure: Failure,
    case: schemathesis.Case,
    response: schemathesis.Response,
) -> bool:
    """Takes refusals that are about more than the request's form; each is named here."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    error = response.json()
    if error["status"] == "FAILED_PRECONDITION":
        return False
    return _ABOUT_CONTENT.fullmatch(error["message"]) is None
