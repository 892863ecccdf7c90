"""What a page says of an error."""

from __future__ import annotations

from typing import Final

from servicekit.errors import Code, DomainError
from servicekit.ids import now
from services.identity.pages.render import Problem
from services.identity.pages.texts import REASONS, TEXTS, rule_text

_FIELD_OF: Final = {
    "email": ("email", "email"),
    "password": ("password", "new_password"),
    "newPassword": ("password", "new_password"),
    "currentPassword": ("current", "current_password"),
    "invitationToken": ("token", "token"),
    "code": ("code", "code"),
    "otp": ("code", "code"),
}
"""The field on the page, and the text of its label, by the name that an error calls it."""
_FIELD_OF_REASON: Final = {"WRONG_INVITATION": "token", "WRONG_CODE": "code", "OTP_NEEDED": "code"}
"""The field that is wrong, by an error's reason."""


def problems_of(language: str, error: DomainError, label: str) -> list[Problem]:
    """What the page says of an error.

    Args:
        label: the text that is the label of the field "password" on this page.
    """
    texts = TEXTS[language]
    if error.violations:
        found = []
        for violation in error.violations:
            name, own = _FIELD_OF.get(violation.field, ("", ""))
            own = label if name == "password" and violation.field == "password" else own
            about = texts.get(own, violation.field)
            found.append(Problem(f"{about}: {rule_text(texts, violation.rule)}", name))
        return found
    if error.reason in REASONS:
        field = _FIELD_OF_REASON.get(error.reason, "")
        return [Problem(texts[REASONS[error.reason]].format(f"{now():%H:%M:%S}"), field)]
    if error.code is Code.RESOURCE_EXHAUSTED:
        return [Problem(texts["too_many"])]
    if error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL}:
        return [Problem(texts["unavailable"])]
    return [Problem(error.message)]
