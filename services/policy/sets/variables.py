"""Variables of a set: planned and applied beside its policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, Scope
from servicekit.errors import DomainError, FieldViolation, failed_precondition, invalid_field
from services.policy.sets.domain import Action, VariableStep
from services.policy.variables import store
from services.policy.variables.domain import MOST_VARIABLES, Variable
from services.policy.variables.service import Variables


class Given(NamedTuple):
    """A variable as a set has it."""

    name: str
    value: str
    overridable: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """What a set says of variables and secrets."""

    variables: tuple[Given, ...] = ()
    secrets: tuple[str, ...] = ()
    """Names of those that have to be set."""

    def check(self) -> None:
        """Refuses a name that is in the set twice.

        Raises:
            DomainError: INVALID_ARGUMENT with the field.
        """
        known: set[str] = set()
        for field, names in (
            ("variables[{}].name", [one.name for one in self.variables]),
            ("secrets[{}]", self.secrets),
        ):
            for index, name in enumerate(names):
                if name in known:
                    raise invalid_field(field.format(index), "is in the set twice")
                known.add(name)


class ApplyingVariables:
    """The variables of one transaction in which a set is applied."""

    def __init__(
        self,
        variables: Variables,
        call: Call,
        tenant_id: UUID,
        named: Named,
        *,
        set_name: str,
        adopt: bool,
    ) -> None:
        self._variables = variables
        self._call = call
        self._tenant_id = tenant_id
        self._named = named
        self._set_name = set_name
        self._adopt = adopt
        self._known: Mapping[str, Variable] = {}

    async def find(self, connection: Connection) -> list[UUID]:
        """Finds the tenant's; answers the policies that name one that may be changed.

        They are to be locked before `put`, as a publish locks its policy before its values.
        """
        scope = Scope.of(self._tenant_id)
        page = await store.list_variables(connection, scope, None, MOST_VARIABLES)
        self._known = {one.name: one for one in page.items}
        return await store.policies_with(connection, self._tenant_id, self._concerned())

    async def put(self, connection: Connection) -> list[VariableStep]:
        """Gives the set's variables their values.

        Raises:
            DomainError: INVALID_ARGUMENT with the field; FAILED_PRECONDITION for one that belongs
                to another set, or to none, unless it is adopted.
        """
        held = await store.hold(connection, self._tenant_id, [v.id for v in self._concerned()])
        self._known = {**self._known, **{one.name: one for one in held}}
        for index, name in enumerate(self._named.secrets):
            secret = self._known.get(name)
            if secret is None or not secret.is_secret:
                raise invalid_field(f"secrets[{index}]", f"is not set: set the secret {name} first")
        return [
            await self._put(connection, index, given)
            for index, given in enumerate(self._named.variables)
        ]

    async def end(self, connection: Connection, *, prune: bool) -> list[VariableStep]:
        """What becomes of the tenant's other variables, once the policies are as the set says."""
        names = {one.name for one in self._named.variables}
        steps = []
        for one in self._known.values():
            if one.is_secret or one.name in names:
                continue
            if one.set_name != self._set_name:
                steps.append(VariableStep(Action.OTHER, one, one))
            elif not prune:
                steps.append(VariableStep(Action.LEFT, one, one))
            else:
                await self._variables.deleted(connection, self._call, one)
                steps.append(VariableStep(Action.DELETE, one, None))
        return steps

    def _concerned(self) -> list[Variable]:
        names = {one.name for one in self._named.variables}
        return [
            one
            for one in self._known.values()
            if not one.is_secret and (one.name in names or one.set_name == self._set_name)
        ]

    async def _put(self, connection: Connection, index: int, given: Given) -> VariableStep:
        name, value, overridable = given
        before = self._known.get(name)
        if before is not None:
            self._check_ownership(index, before)
        try:
            if before is None:
                after = await self._variables.created(
                    connection, self._call, self._tenant_id, name, value, overridable=overridable
                )
            elif (before.value, before.overridable) != (value, overridable):
                after = await self._variables.changed(
                    connection, self._call, before, value, overridable=overridable
                )
            else:
                after = before
        except DomainError as error:
            found = error.violations
            error.violations = tuple(
                FieldViolation(f"variables[{index}].{one.field}", one.rule) for one in found
            )
            raise
        action = self._action(before, after)
        if action is not Action.UNCHANGED:
            await store.put_into_set(connection, after, self._set_name)
        return VariableStep(action, before, after)

    def _check_ownership(self, index: int, variable: Variable) -> None:
        if variable.is_secret:
            raise invalid_field(f"variables[{index}].name", "is the name of a secret")
        if self._adopt or variable.set_name == self._set_name:
            return
        if variable.set_name:
            raise failed_precondition(
                "VARIABLE_OF_ANOTHER_SET",
                f"the variable {variable.name} belongs to the set {variable.set_name}; take it out"
                " of that one, or adopt it",
            )
        raise failed_precondition(
            "VARIABLE_NOT_ADOPTED",
            f"a variable is called {variable.name} and belongs to no set: adopt it, or take"
            " another name",
        )

    def _action(self, before: Variable | None, after: Variable) -> Action:
        if before is None:
            return Action.CREATE
        if before.set_name != self._set_name:
            return Action.ADOPT if after is before else Action.UPDATE
        if after is before:
            return Action.UNCHANGED
        return Action.UPDATE if before.set_revision == before.revision else Action.RESTORE


async def exported(connection: Connection, tenant_id: UUID) -> Named:
    """A tenant's variables and secrets, as a set would have them."""
    scope = Scope.of(tenant_id)
    found = (await store.list_variables(connection, scope, None, MOST_VARIABLES)).items
    return Named(
        tuple(
            Given(one.name, one.value or "", one.overridable) for one in found if not one.is_secret
        ),
        tuple(one.name for one in found if one.is_secret),
    )
