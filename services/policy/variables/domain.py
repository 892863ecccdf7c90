"""Variables and secrets of tenants: their rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.policy import VariableSnapshot
from servicekit.errors import Code, DomainError, exhausted, failed_precondition
from services.policy.authoring.document import MAX_SECRET
from services.policy.authoring.domain import Warned
from services.policy.authoring.violations import MAX_TEXT, Violations, check_text

MOST_VARIABLES: Final = 500
"""Of a tenant."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable or secret; `value` is `None` for a secret."""

    id: UUID
    tenant_id: UUID
    name: str
    is_secret: bool
    value: str | None = field(repr=False)
    fingerprint: str
    revision: int
    updated_at: datetime
    updated_by: str
    set_name: str = ""
    """The set that it belongs to; empty for none."""
    set_revision: int = 0
    """What its revision was when that set was applied."""
    overridable: bool = False
    """Whether tenants below may have a value of their own in its place."""

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return str(self.revision)

    @property
    def reference(self) -> str:
        """What templates call it."""
        return f"{'secret' if self.is_secret else 'var'}.{self.name}"

    def snapshot(self, published: int = 0) -> VariableSnapshot:
        """As events show it."""
        return VariableSnapshot(
            name=self.name,
            kind="SECRET" if self.is_secret else "VARIABLE",
            org_id=self.tenant_id,
            published=published,
            overridable=self.overridable,
        )


@dataclass(frozen=True, slots=True)
class Use:
    """A policy that names a variable."""

    policy_id: UUID
    name: str
    in_force: bool
    changed_since_publish: bool
    has_older_value: bool = False
    """Whether what is in force of it was published before the value was set."""
    rollout_id: UUID | None = None
    """The rollout that was begun for the value."""


@dataclass(frozen=True, slots=True)
class Taking:
    """A policy in force of a tenant above that takes a value in place of its own."""

    name: str
    tenant_id: UUID
    version: int


@dataclass(frozen=True, slots=True)
class Advice:
    """Advice on a value, of a policy that has it."""

    policy: str
    warned: Warned


def check_value(value: str, *, is_secret: bool) -> None:
    """Refuses a value that no field of a document can have.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    violations = Violations()
    if not value:
        violations.add("value", "must not be empty")
    check_text(value, "value", violations, MAX_SECRET if is_secret else MAX_TEXT)
    if "{{" in value or "}}" in value:
        violations.add("value", "must not have double braces: a value names no other one")
    violations.raise_if_any()


def already_there(name: str) -> DomainError:
    """A name stands for one value."""
    return DomainError(
        Code.ALREADY_EXISTS,
        "VARIABLE_EXISTS",
        f"the tenant has a variable or secret {name} already; change that one",
    )


def too_many() -> DomainError:
    """Each is read where a policy is published."""
    return failed_precondition(
        "TOO_MANY_VARIABLES", f"a tenant has at most {MOST_VARIABLES} variables and secrets"
    )


def too_many_refused() -> DomainError:
    """Only a wrong value would be refused now."""
    return exhausted(
        "TOO_MANY_REFUSED_VALUES",
        "too many values of this secret were refused within an hour: wait, or set one without"
        " `apply`",
        retry_after=600.0,
    )


def still_used(uses: list[Use]) -> DomainError:
    """The policies could not be published any more."""
    names = ", ".join(one.name for one in uses[:10]) + (" ..." if len(uses) > 10 else "")
    return failed_precondition("VARIABLE_USED", f"policies name it: {names}; change them first")


def still_needed(problem: str) -> DomainError:
    """What devices would get in its place cannot be applied."""
    return failed_precondition("VARIABLE_USED", f"the value above, in its place, {problem}")
