"""What a bundle sets as one of several layers, and the document that layers make together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.errors import Code, DomainError
from services.policy.authoring.agent_rules import refused
from services.policy.authoring.blanks import Blanks
from services.policy.authoring.configuration import BASELINE, is_console_form
from services.policy.authoring.document import MAX_DOCUMENT, Document, parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.authoring.secret_values import secrets_of
from services.policy.authoring.sizes import in_steps, unseen
from services.policy.authoring.templates import (
    NO_VALUES,
    Told,
    Values,
    ValuesAt,
    is_template,
    references,
    told,
)
from services.policy.layers.fields import FIELDS
from services.policy.layers.merging import (
    ITEM_PATHS,
    PATHS,
    Folded,
    Layer,
    Level,
    Merging,
    Source,
)
from services.policy.versions import Version

_FORM: Final = {
    "apps.required": ("apps",),
    "updates.channel": ("updateChannel",),
    "browser.homepage": ("browser", "homepageUrl"),
    "network.wifi": ("network", "wifiNetworks"),
}
"""Where the console's form says something, by the path of a document."""
_NETWORKS: Final = ("network.wifi", "network.vpns")
_ABOVE: Final = (Level.ROOT, Level.RESELLER)
_OTHER_ITEMS: Final = tuple(path for path in ITEM_PATHS if path not in _NETWORKS)
_OTHERS: Final = tuple(path for path in PATHS if path not in _NETWORKS)
_BASELINE: Final = (
    "security.selinux_enforce",
    "security.ssh_enabled",
    "security.usbguard",
    "security.usbguard_rules",
    "security.allow_root_login",
)
"""What the console's form has no switch for; it counts where no layer above says otherwise."""
_STRICT: Final = {
    f"security.{name}": value for name, value in asdict(BASELINE).items() if value is not None
}
"""What a form has there where nothing was in force before, by path."""


@dataclass(frozen=True, slots=True)
class Open:
    """What a template leaves to tenants below: values of their own in place of some."""

    names: frozenset[str]
    """Those in whose place they may have their own."""
    values: Values
    """All that it was published with."""
    template: Mapping[str, Any] = field(repr=False)

    def stored(self) -> dict[str, Any]:
        """As JSON."""
        of = self.values.of
        return {
            "names": sorted(self.names),
            "values": {name: of[name] for name in of if not name.startswith("secret.")},
            # A name by which the vault knows that there are some.
            "secrets": {name: of[name] for name in of if name.startswith("secret.")},
            "marks": self.values.marks,
            "template": self.template,
        }

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Open:
        """What `stored` made."""
        names = frozenset(stored["names"])
        of = {**stored["values"], **stored["secrets"]}
        return cls(names, Values(of, stored["marks"], names), stored["template"])


@dataclass(frozen=True)
class Own:
    """What one version sets by itself.

    `baseline` are the values of a console's form for which it has no switch; `None` for a document.
    """

    sets: Mapping[str, Any] = field(repr=False)
    baseline: Mapping[str, Any] | None
    merging: Merging
    told: Told = field(default_factory=dict, repr=False)
    """What is compared in place of the secrets that a template names."""
    open: Open | None = None
    """What a template leaves to tenants below; `None` for nothing."""

    @cached_property
    def blanks(self) -> Blanks | None:
        """What differs between tenants below; `None` where nothing is left to them."""
        left = self.open
        return None if left is None else Blanks(self.sets, left.template, left.values)

    @property
    def says_networks(self) -> bool:
        """Whether it has networks or VPNs."""
        return any(self.sets.get(path) for path in _NETWORKS)

    def text(self) -> str:
        """As it is stored with the version."""
        stored = {"sets": self.sets, "baseline": self.baseline, "merging": self.merging.stored()}
        if self.told:
            stored["told"] = self.told
        if self.open is not None:
            stored["open"] = self.open.stored()
        return json.dumps(stored, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Own:
        """What `text` wrote."""
        stored = json.loads(text)
        return cls(
            stored["sets"],
            stored["baseline"],
            Merging.of(stored["merging"]),
            stored.get("told", {}),
            Open.read(stored["open"]) if "open" in stored else None,
        )


class MadeWith(NamedTuple):
    """Tells values of tenants below from others; empty for none."""

    values: str
    names: str
    """The same of codes and names."""


NOTHING_OWN: Final = MadeWith("", "")


@dataclass(frozen=True, slots=True)
class InForce:
    """A version that is in force for a tenant, as a layer of what is below."""

    source: Source
    own: Own
    published: Own | None = None
    """As it was published, where tenants below have values of their own in it."""
    filled_by: UUID | None = None
    """The lowest one of these tenants."""
    made_with: MadeWith = field(default=NOTHING_OWN, repr=False)
    """Tells their values from others."""
    unfit: str = ""
    """Why their values are not in it, where devices could not apply it with them."""
    fits: Own | None = None
    """It with those of their values that devices could apply, then."""

    @property
    def layer(self) -> Layer:
        """What it sets."""
        return Layer(self.source, self.own.sets, self.own.merging, self.own.told)


def own_of(
    bundle: Any,
    document: bytes,
    merging: Merging,
    values: Values = NO_VALUES,
    at: ValuesAt | None = None,
) -> Own:
    """What an authored bundle sets; `document` is what it compiles to alone.

    Args:
        values: with which a template was compiled.
        at: those at a place of it, where they are not the same everywhere.
    """
    compared = told(bundle, at or (lambda _: values))
    compiled = json.loads(document)
    left = None
    if is_template(bundle):
        named = references(bundle)
        bundle = bundle["template"]
        if at is None and (names := named & values.open):
            left = Open(names, replace(values, open=names), bundle)
    sets = {one.path: one.of(compiled) for one in FIELDS if _is_set(bundle, one.path)}
    baseline = None
    if is_console_form(bundle):
        baseline = {
            one.path: value
            for one in FIELDS
            if one.path in _BASELINE and (value := one.of(compiled)) is not None
        }
    return Own(sets, baseline, merging, compared, left)


def _is_set(bundle: Any, path: str) -> bool:
    steps = path.split(".")
    if is_console_form(bundle):
        if path not in _FORM:
            return False
        steps = ["configuration", *_FORM[path]]
    at: Any = bundle
    for step in steps:
        at = at.get(step) if isinstance(at, Mapping) else None
    return at is not None


def folded(layers: Sequence[InForce]) -> Folded:
    """All layers as one, the root's first; a console's form has its baseline below them."""
    found = Folded(one.layer for one in layers)
    for path in _BASELINE:
        standing = _standing(layers, path)
        if standing is not None:
            at, value = standing
            found.fill(path, value, Source(Level.BASELINE, layers[at].source.tenant_id))
    return found


def _standing(layers: Sequence[InForce], path: str) -> tuple[int, Any] | None:
    """What stands in a field that no layer sets, and the place of the form that says it.

    Of several forms the lowest one says it, as it does alone. Where a layer above it locked the
    field, it is nobody's own value. `inherit: false` of a form itself, or of a layer above it, ends
    nothing of it; that of a document below does.
    """
    forms = [at for at, one in enumerate(layers) if one.own.baseline is not None]
    last = len(layers) - 1
    lock = next((at for at, one in enumerate(layers) if one.own.merging.locks(path)), last)
    for at in [at for at in forms if at <= lock][-1:]:
        if all(one.own.merging.inherit for one in layers[at + 1 : lock + 1]):
            value = (layers[at].own.baseline or {}).get(path)
            return None if value is None else (at, value)
    if forms and forms[-1] > lock and path in _STRICT:
        return forms[-1], _STRICT[path]
    return None


def encoded(found: Folded) -> bytes:
    """The exact bytes that devices get of layers.

    Raises:
        DomainError: FAILED_PRECONDITION when devices could not apply them together. It names no
            value: it may be another tenant's.
    """
    return _checked(found.document(), set(), _counting(found))


def together(layers: Sequence[InForce], found: Folded | None = None) -> bytes:
    """The exact bytes that devices get of layers that may have values of tenants below.

    Args:
        found: the layers as one, where they were folded already.

    Raises:
        DomainError: FAILED_PRECONDITION when devices could not apply them together, or one of them
            with these values.
    """
    for one in layers:
        if one.unfit:
            raise _not_together(f"with a value of a tenant below: {one.unfit}")
    return encoded(folded(layers) if found is None else found)


def _counting(found: Folded) -> int:
    """By how much a document counts for more than it is long; below zero for less."""
    more = 0
    for one in found.values:
        if one.path in _NETWORKS and one.source is not None and not one.gone:
            section, _, name = one.path.partition(".")
            secrets = secrets_of({section: {name: [one.value]}})
            more += -unseen(secrets) if one.source.level in _ABOVE else in_steps(secrets)
    return more


def _checked(found: Mapping[str, Any], known: Set[tuple[str, str]], more: int) -> bytes:
    """The bytes of a document that breaks no rules but those that are known.

    Args:
        more: by how much it counts for more than it is long.
    """
    try:
        document = parse_document(found)
    except DomainError as broken:
        raise _not_together(broken.message) from broken
    body = encode_document(document)
    if len(body) + more > MAX_DOCUMENT:
        # Not by how much: that is told by what tenants above say.
        raise _not_together(f"the document would have more than {MAX_DOCUMENT} bytes")
    for path, rule in sorted(_broken(document) - known):
        raise _not_together(f"{path}: breaks the rule {rule}")
    return body


@dataclass(frozen=True, slots=True)
class Held:
    """What devices get of layers that do not fit together."""

    body: bytes = field(repr=False)
    layers: tuple[InForce, ...]
    """What is left of them."""
    locked: tuple[str, ...] | None
    """The fields that the layers say, while the others stay as they were; `None` for all."""


def with_locks(layers: Sequence[InForce], before: bytes | None) -> Held:
    """What devices get of layers that do not fit together.

    That is `before`, what they had, with all that is locked as the layers have it now: a layer that
    says too much does not escape a lock. Where that does not fit either, the lowest layers lose
    what they set, networks and VPNs last.

    Raises:
        DomainError: FAILED_PRECONDITION when devices could not apply what is left.
    """
    if before is not None:
        with suppress(DomainError):
            return with_kept(layers, before)
    less = list(layers)
    for at in range(len(less) - 1, 0, -1):
        for loses in (_OTHER_ITEMS, _OTHERS, PATHS):
            own = layers[at].own
            sets = {path: value for path, value in own.sets.items() if path not in loses}
            less[at] = replace(layers[at], own=Own(sets, own.baseline, Merging(), own.told))
            with suppress(DomainError):
                return Held(encoded(folded(less)), tuple(less), None)
    return Held(encoded(folded(less)), tuple(less), None)


def with_kept(layers: Sequence[InForce], before: bytes) -> Held:
    """What devices had, with all that is locked as the layers have it now.

    Raises:
        DomainError: FAILED_PRECONDITION when devices could not apply that.
    """
    locked = [path for path in PATHS if any(one.own.merging.locks(path) for one in layers)]
    return Held(_kept(folded(layers), locked, before), tuple(layers), tuple(locked))


def _kept(together: Folded, paths: Sequence[str], before: bytes) -> bytes:
    """A document with some fields as layers have them."""
    found = together.document()
    document: dict[str, Any] = json.loads(before)
    broken = _broken(parse_document(document))
    for path in paths:
        section, _, name = path.partition(".")
        document[section] = {**(document.get(section) or {})}
        document[section].pop(name, None)
        if name in found.get(section, {}):
            document[section][name] = found[section][name]
    # Whose the secrets of what was before are, nobody knows.
    return _checked(document, broken, -unseen(secrets_of(document)))


def _broken(document: Document) -> set[tuple[str, str]]:
    """The rules that a document breaks, with where: one of an earlier release may."""
    return {(one.path, one.rule.name) for one in refused(document)}


def _not_together(reason: str) -> DomainError:
    return DomainError(
        Code.FAILED_PRECONDITION,
        "LAYERS_DO_NOT_FIT",
        f"devices cannot apply the policy together with those above it: {reason}",
    )


class Around(Protocol):
    """The layers that a policy stands among."""

    async def above(
        self, connection: Connection, tenant_id: UUID, *, targeted: bool
    ) -> list[InForce]:
        """What is in force above a tenant, or with `targeted` above groups and devices of it."""

    async def published(
        self, connection: Connection, tenant_id: UUID, above: Sequence[InForce], version: Version
    ) -> None:
        """Notes what devices are to have from now on, which is the version's document."""


def own_of_version(version: Version) -> Own:
    """What a published version sets by itself; one of the last release says it by its document."""
    if version.layer is not None:
        return Own.read(version.layer)
    return own_of(json.loads(version.authored), version.document, Merging())


def own_document_of(version: Version) -> bytes:
    """The document that a published version makes alone."""
    if not version.inherits:
        return version.document
    return own_document(own_of_version(version), version.tenant_id)


def own_document(own: Own, tenant_id: UUID) -> bytes:
    """What a version makes alone."""
    source = Source(Level.ORG, tenant_id)
    return encode_document(parse_document(folded([InForce(source, own)]).document()))
