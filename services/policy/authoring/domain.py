"""Policies: their rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from contract.events.policy import PolicySnapshot, RestoredPolicySnapshot
from servicekit.errors import Code, DomainError, FieldViolation, invalid, invalid_field
from servicekit.security.digests import sha256_hex
from services.policy.authoring.agent_rules import Finding, check
from services.policy.authoring.configuration import compile_bundle, is_console_form, keeps_baseline
from services.policy.authoring.document import MAX_DOCUMENT, Security, parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.authoring.layering import own_document_of
from services.policy.authoring.secret_values import MASKED, REDACTED, hide, secrets_of
from services.policy.authoring.sizes import in_steps, unseen
from services.policy.authoring.templates import (
    NO_VALUES,
    CountsAt,
    Values,
    ValuesAt,
    everywhere,
    expanded,
    is_template,
    places_of,
)
from services.policy.authoring.violations import (
    MAX_ITEMS,
    MAX_TEXT,
    Violations,
    check_text,
    child,
    item,
)
from services.policy.layers.merging import ITEM_PATHS, PATHS, SECTIONS, Merging
from services.policy.targets.domain import PolicyTargets
from services.policy.versions import Version

# An audit entry shows a policy up to this size, and of a larger one its digest.
_MAX_AUDITED = 100_000


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it is administered; `authored` is its JSON text as given."""

    id: UUID
    tenant_id: UUID
    name: str
    description: str | None
    authored: str = field(repr=False)
    revision: int
    published_version: int | None
    changed_since_publish: bool
    in_force: bool
    created_at: datetime
    updated_at: datetime
    merging: Merging = field(default_factory=Merging)
    targets: PolicyTargets = field(default_factory=PolicyTargets)
    rollout_id: UUID | None = None
    """Of the rollout that brings a version of it to devices."""

    @property
    def etag(self) -> str:
        """Changes with every change of the policy."""
        return str(self.revision)

    @property
    def delivered(self) -> bool:
        """Whether what is authored now is signed and in force: the API's `signed`."""
        return self.in_force and not self.changed_since_publish


@dataclass(frozen=True, slots=True)
class Published:
    """What a list says of a published version.

    `holds_secrets` is asked for callers who may not see them; for all others it is of those that
    are shown to nobody.
    """

    version: int
    published_at: datetime
    published_by: str
    rollback_of: int | None
    key_id: str
    document_sha256: str
    holds_secrets: bool
    never_in_force: bool = False
    """Whether only the devices of a rollout ever got it."""


@dataclass(frozen=True, slots=True)
class Warned:
    """A place in a stored policy that its author should know of."""

    field: str
    rule: str
    text: str
    blocks: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """The exact bytes that devices get of a bundle, and what breaks a rule of theirs."""

    document: bytes = field(repr=False)
    findings: tuple[Finding, ...]


def check_policy(
    bundle: object,
    standing: Security | None = None,
    *,
    size_of: Callable[[bytes], int] | None = None,
) -> Checked:
    """Compiles an authored bundle and holds it against the rules of the released agent.

    The paths of the findings are those of the authored form, from `bundle` on. `standing` is what
    the policy in force says of security, which the console's form takes USBGuard from. `size_of`
    says how large a document counts that is not to be told. Raises `DomainError` (INVALID_ARGUMENT)
    with every field of a wrong shape.
    """
    try:
        compiled = compile_bundle(bundle, "bundle", standing)
        document = encode_document(compiled.document)
    except RecursionError as deep:
        raise invalid_field("bundle", "is nested too deeply") from deep
    if size_of is None and len(document) > MAX_DOCUMENT:
        raise _too_long(f", not {len(document)}")
    if size_of is not None and size_of(document) > MAX_DOCUMENT:
        raise _too_long()
    found = [
        Finding(finding.rule, _authored_path(finding.path, compiled.places))
        for finding in check(compiled.document, compiled.unset)
    ]
    return Checked(
        document,
        tuple(Finding(each.rule, f"bundle.{each.path}") for each in (*found, *compiled.notes)),
    )


def compile_policy(
    bundle: object,
    standing: Security | None = None,
    *,
    draft: bool = False,
    values: Values = NO_VALUES,
    at: ValuesAt | None = None,
    counts: CountsAt = everywhere,
) -> bytes:
    """The exact bytes that devices get of an authored bundle.

    A `draft` of the console's form may lack what the form has no field for. A template gets
    `values`, or those `at` a place of it; where the secrets at a place do not count, they are of a
    tenant above. Raises `DomainError` (INVALID_ARGUMENT) with every field that devices could not
    apply.
    """
    if isinstance(bundle, Mapping) and is_template(bundle):
        if MASKED in secrets_of(bundle):
            # The release before changed the policy: it knows no more of a template.
            raise invalid_field("bundle.template", f"has {MASKED} in place of a secret: give it")
        document = expanded(bundle, values, "bundle", at, counts)
        others = secrets_of(document, lambda place: not counts(place))
        more = in_steps(secrets_of(document, counts)) - unseen(others)
        with _in_template():
            checked = check_policy(document, standing, size_of=lambda body: len(body) + more)
            lenient = draft and is_console_form(document)
            _refuse(found for found in checked.findings if not (lenient and found.rule.draft))
            return checked.document
    checked = check_policy(bundle, standing)
    lenient = draft and is_console_form(bundle)
    _refuse(found for found in checked.findings if not (lenient and found.rule.draft))
    return checked.document


def _too_long(told: str = "") -> DomainError:
    return invalid_field("bundle", f"must be at most {MAX_DOCUMENT} bytes as a document{told}")


def compile_rollback(
    version: Version, bundle: Any, standing: Security | None, values: Values = NO_VALUES
) -> bytes:
    """The bytes of an earlier version, unless devices could not apply them.

    `bundle` is what was authored. A version of the console's form from before it had a baseline is
    compiled anew, and so is a template, with the values of now. Raises `DomainError`
    (INVALID_ARGUMENT).
    """
    if is_template(bundle):
        return compile_policy(bundle, standing, values=values)
    own = own_document_of(version)
    document = parse_document(json.loads(own))
    if is_console_form(bundle) and not keeps_baseline(document.security):
        return compile_policy(bundle, standing)
    _refuse(Finding(found.rule, f"bundle.{found.path}") for found in check(document))
    return own


@contextmanager
def _in_template() -> Iterator[None]:
    """Names the fields of a template in errors of its document."""
    try:
        yield
    except DomainError as error:
        if not error.violations:
            raise
        places = [one.field.removeprefix("bundle") for one in error.violations]
        raise invalid(
            *(
                FieldViolation(f"bundle.template{place}", one.rule)
                for place, one in zip(places, error.violations, strict=True)
            )
        ) from error


def warnings_of(policy: Policy) -> tuple[Warned, ...]:
    """What of a stored policy breaks a rule of this release, or has another effect than meant.

    Nothing of a template: its values are looked at when it is stored and published.
    """
    authored = json.loads(policy.authored)
    if is_template(authored):
        return ()
    try:
        findings = check_policy(authored).findings
    except DomainError as broken:
        return tuple(Warned(fault.field, "shape", fault.rule, True) for fault in broken.violations)
    return tuple(
        Warned(found.path, found.rule.name, found.rule.text, found.rule.refuses)
        for found in findings
    )


def advice_on(template: Any, reference: str, values: Values) -> tuple[Warned, ...]:
    """Advice on a value where it alone is the text of a field of a template.

    A text with more in it would tell its caller about that.

    Args:
        template: the document or the form of a template.
        reference: what it calls the value.
        values: all that it names.
    """
    places = places_of(template, reference)
    if not places:
        return ()
    try:
        findings = check_policy(expanded({"template": template}, values, "bundle")).findings
    except DomainError:
        return ()
    return tuple(
        Warned(f"bundle.template.{place}", found.rule.name, found.rule.text, False)
        for found in findings
        if not found.rule.refuses and (place := found.path.removeprefix("bundle.")) in places
    )


def not_publishable(broken: DomainError) -> DomainError:
    """What is stored breaks rules; it has to be changed before it can be published."""
    return DomainError(
        Code.FAILED_PRECONDITION,
        "POLICY_BREAKS_RULES",
        f"the policy cannot be published before it is changed: {broken.message}",
        violations=broken.violations,
    )


def never_in_force() -> DomainError:
    """A version that only some devices had would come to all of them at once."""
    return DomainError(
        Code.FAILED_PRECONDITION,
        "NEVER_IN_FORCE",
        "the version was never in force: its rollout was not completed; publish its content with a"
        " plan instead",
    )


def still_in_force() -> DomainError:
    """Deleting the policy would leave devices with it for ever, and nothing to show it."""
    return DomainError(
        Code.FAILED_PRECONDITION,
        "POLICY_IN_FORCE",
        "the policy is in force or a rollout brings it to devices, and they would keep it: publish"
        " another policy of the organisation first, or withdraw this one; force=true"
        " deletes it all the same",
    )


def check_merging(merging: Merging) -> None:
    """Refuses paths that there are not, and what is there twice or too often.

    Raises:
        DomainError: INVALID_ARGUMENT with every field.
    """
    violations = Violations()
    for index, path in enumerate(merging.locked[:MAX_ITEMS]):
        where = f"merging.lockedFields[{index}]"
        if path not in PATHS and path not in SECTIONS:
            violations.add(
                where, "must be a field of a document, such as network.wifi, or a section of it"
            )
    lists = ", ".join(ITEM_PATHS)
    for index, path in enumerate(merging.replaced[:MAX_ITEMS]):
        if path not in ITEM_PATHS:
            violations.add(f"merging.replacedFields[{index}]", f"must be one of {lists}")
    _check_each_once("merging.lockedFields", merging.locked, violations)
    _check_each_once("merging.replacedFields", merging.replaced, violations)
    for path, names in merging.removed.items():
        where = child("merging.removedItems", path)
        if path not in ITEM_PATHS:
            violations.add(where, f"must be one of {lists}")
            continue
        for index, name in enumerate(names[:MAX_ITEMS]):
            check_text(name, item(where, index), violations, MAX_TEXT)
        _check_each_once(where, names, violations)
    size = len(json.dumps(merging.stored(), ensure_ascii=False).encode())
    if not violations.found and size > _MAX_AUDITED:
        violations.add("merging", f"must have at most {_MAX_AUDITED} bytes as JSON, not {size}")
    violations.raise_if_any()


def _check_each_once(where: str, names: Sequence[object], violations: Violations) -> None:
    """Refuses a list that is too long, or that has something twice."""
    if len(names) > MAX_ITEMS:
        violations.add(where, f"must have at most {MAX_ITEMS} items, not {len(names)}")
        return
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not isinstance(name, str):
            continue
        if name in seen:
            violations.add(item(where, index), "is in the list twice")
        seen.add(name)


def same_json(one: str, other: str) -> bool:
    """Whether two texts are the same JSON; the order of an object's members does not count."""
    return one == other or _ordered(one) == _ordered(other)


def _ordered(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def standing_of(version: Version | None) -> Security | None:
    """What a version in force says of security."""
    return (
        None if version is None else parse_document(json.loads(own_document_of(version))).security
    )


def _refuse(findings: Iterable[Finding]) -> None:
    violations = Violations()
    for found in findings:
        if found.rule.refuses:
            violations.add(found.path, found.rule.text)
    violations.raise_if_any()


def _authored_path(path: str, places: Mapping[str, str]) -> str:
    """Where the author of a form finds what stands at a path of the document."""
    for end in (at for at in range(len(path), 0, -1) if at == len(path) or path[at] in ".["):
        if path[:end] in places:
            return places[path[:end]] + path[end:]
    return path


def what_counts(bundle: Any) -> Any:
    """What of an authored bundle makes the policy: of the console's form its `configuration`.

    The editor writes another `version` and `signature` around it with each save.
    """
    return bundle["configuration"] if is_console_form(bundle) else bundle


def snapshot(policy: Policy) -> PolicySnapshot:
    """A policy as events show it: without secrets, and not beyond measure."""
    return PolicySnapshot(
        name=policy.name,
        description=policy.description,
        org_id=policy.tenant_id,
        version=str(policy.published_version or 0),
        in_force=policy.in_force,
        bundle=_shown(policy),
        merging=policy.merging.stored(),
        targets=policy.targets.stored(),
    )


def snapshot_after_rollback(policy: Policy, version: str) -> RestoredPolicySnapshot:
    """The same, with the version that is in force again."""
    return RestoredPolicySnapshot(
        name=policy.name,
        description=policy.description,
        org_id=policy.tenant_id,
        version=str(policy.published_version or 0),
        in_force=policy.in_force,
        bundle=_shown(policy),
        merging=policy.merging.stored(),
        targets=policy.targets.stored(),
        rollback_of=version,
    )


def _shown(policy: Policy) -> object:
    bundle: object = hide(json.loads(policy.authored), REDACTED)
    text = json.dumps(bundle, ensure_ascii=False)
    if len(text.encode()) > _MAX_AUDITED:
        # Of what is shown: a digest over the secrets would let readers try out guesses.
        digest = sha256_hex(text.encode())
        return {"omitted": "too large for the audit log", "sha256": digest}
    return bundle
