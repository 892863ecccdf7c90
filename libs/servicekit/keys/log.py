"""The published log of the keys that sign policies: its format, and how it is checked.

An entry is an envelope as DSSE has it (https://github.com/secure-systems-lab/dsse): exact bytes,
and signatures of one or more keys over them. The bytes are a JSON object with `sequence` (from 1
on), `previous` (the SHA-256 of the bytes before, empty in the first entry), `action`, `scope`,
`key` (a JSON Web Key), `at`, and with `certify` the `certificate`.

| action | says | signed by |
| --- | --- | --- |
| `add` | there is a new key | the key, and one in use before it |
| `retire` | the key signs nothing any more | another key in use |
| `revoke` | the key is in wrong hands: from here on it vouches for nothing | another key in use |
| `root` | an offline key certifies new keys | a key in use |
| `certify` | the offline root vouches for a key | that key; the root by its certificate |
| `restored` | entries behind the one before are lost, with a database | a key of the installation |

After a restore of a backup the log goes on with `restored`, whose number is above all that were
given out: it is at least the seconds of its time since 1970. `lost` has the last number and digest
that are known of the lost entries. No number stands for two entries.

A key of a scope is vouched for by keys of the same scope, and by those of the installation. Once
there is a root, a key that is added is trusted by its certificate alone. The
scope names a tenant by a digest, so that only who knows its id can tell whose key it is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from servicekit.security.digests import sha256_hex
from servicekit.security.signing import PublicKey, Signer, dsse_encoding, read_jwk
from servicekit.times import format_rfc3339

PAYLOAD_TYPE: Final = "application/vnd.evergreen.policy-key-log.v1+json"
CERTIFICATE_TYPE: Final = "application/vnd.evergreen.policy-key-certificate.v1+json"
INSTALLATION: Final = "installation"
_MOST_BYTES: Final = 1 << 16
"""Of an entry's payload; those that are written have less than a tenth."""


class LogError(Exception):
    """The log, an entry, or a certificate is not what it has to be."""


class Action(StrEnum):
    """What an entry says of its key."""

    ADD = "add"
    RETIRE = "retire"
    REVOKE = "revoke"
    ROOT = "root"
    CERTIFY = "certify"
    RESTORED = "restored"


def scope_of(tenant_id: UUID | None) -> str:
    """Whose keys: those of a tenant, or of the whole installation."""
    if tenant_id is None:
        return INSTALLATION
    return f"tenant:{sha256_hex(f'evergreen policy key scope {tenant_id}'.encode())}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """Signed bytes, as DSSE has them: signatures by the ids of keys."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...] = ()

    @property
    def sha256(self) -> str:
        """The digest by which the next entry names this one."""
        return sha256_hex(self.payload)

    def signed_by(self, signers: Iterable[Signer]) -> Envelope:
        """The same with signatures of keys, each once."""
        message = dsse_encoding(self.payload_type, self.payload)
        by_id = {signer.public.id: signer for signer in signers}
        made = tuple((key_id, signer.sign(message)) for key_id, signer in by_id.items())
        return Envelope(self.payload_type, self.payload, (*self.signatures, *made))

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether a signature of a key is among them and good."""
        message = dsse_encoding(self.payload_type, self.payload)
        return any(key.verifies(message, made) for id_, made in self.signatures if id_ == key.id)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "payloadType": self.payload_type,
            "payload": base64.b64encode(self.payload).decode(),
            "signatures": [
                {"keyid": id_, "sig": base64.b64encode(made).decode()}
                for id_, made in self.signatures
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Envelope:
        """What `to_json` wrote.

        Raises:
            LogError: it is no such object.
        """
        try:
            found = cls(
                str(value["payloadType"]),
                base64.b64decode(value["payload"], validate=True),
                tuple(
                    (str(one["keyid"]), base64.b64decode(one["sig"], validate=True))
                    for one in value.get("signatures", ())
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LogError("it is no signed envelope") from error
        if len(found.payload) > _MOST_BYTES:
            raise LogError("the envelope is too long")
        return found


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends."""

    sequence: int = 0
    sha256: str = ""


def entry(
    head: Head,
    action: Action,
    scope: str,
    key: PublicKey,
    at: datetime,
    signers: Sequence[Signer],
    *,
    certificate: Envelope | None = None,
) -> Envelope:
    """The next entry of a log.

    Args:
        head: where the log ends.
        certificate: with `certify`, what the root signed.
    """
    said: dict[str, Any] = {
        "sequence": head.sequence + 1,
        "previous": head.sha256,
        "action": action.value,
        "scope": scope,
        "key": key.jwk(),
        "at": format_rfc3339(at),
    }
    if certificate is not None:
        said["certificate"] = certificate.to_json()
    payload = json.dumps(said, separators=(",", ":")).encode()
    return Envelope(PAYLOAD_TYPE, payload).signed_by(signers)


def certificate_request(scope: str, key: PublicKey) -> Envelope:
    """What an offline root signs: the same bytes for the same key, whenever they are asked for."""
    said = {"certifies": key.jwk(), "scope": scope}
    return Envelope(CERTIFICATE_TYPE, json.dumps(said, separators=(",", ":")).encode())


def read_request(envelope: Envelope) -> tuple[str, PublicKey]:
    """The scope and the key that a request, or a certificate, is about.

    Raises:
        LogError: it is none.
    """
    if envelope.payload_type != CERTIFICATE_TYPE:
        raise LogError("it is no request for a certificate of a policy key")
    try:
        said = json.loads(envelope.payload)
        scope, key = str(said["scope"]), read_jwk(said["certifies"])
    except (KeyError, TypeError, ValueError) as error:
        raise LogError("the request names no key") from error
    if certificate_request(scope, key).payload != envelope.payload:
        raise LogError("the request says more than a request says")
    return scope, key


def is_certificate(entry: Envelope, root: PublicKey, scope: str, key: PublicKey) -> bool:
    """Whether an entry of a log has a root's certificate of a key."""
    try:
        certificate = Envelope.from_json(json.loads(entry.payload).get("certificate"))
    except (AttributeError, LogError, ValueError):
        return False
    asked = certificate_request(scope, key)
    return certificate.payload == asked.payload and certificate.is_signed_by(root)


def restored_entry(head: Head, lost: Head, at: datetime, signer: Signer) -> Envelope:
    """What a log goes on with whose last entries are lost.

    Args:
        head: where the log ends that is left.
        lost: where it ended, as far as that is known.
        signer: a key of the installation in use.
    """
    sequence = max(head.sequence, lost.sequence, int(at.timestamp()) - 1) + 1
    said: dict[str, Any] = {
        "sequence": sequence,
        "previous": head.sha256,
        "action": Action.RESTORED.value,
        "scope": INSTALLATION,
        "key": signer.public.jwk(),
        "at": format_rfc3339(at),
        "lost": {"sequence": lost.sequence, "sha256": lost.sha256},
    }
    payload = json.dumps(said, separators=(",", ":")).encode()
    return Envelope(PAYLOAD_TYPE, payload).signed_by([signer])


def sequence_of(entry: Envelope) -> int:
    """The number of an entry that was checked, or made here."""
    return int(json.loads(entry.payload)["sequence"])


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries that are lost since a restore."""

    behind: Head
    """The last entry that was left."""
    sequence: int
    """The number with which the log goes on."""
    at: str
    lost: Head
    """The last one of them that is known; 0 for none."""


@dataclass(slots=True)
class LoggedKey:
    """A key of a log, as of its end."""

    key: PublicKey
    scope: str
    added_at: str
    vouched_by: tuple[str, ...]
    """The keys that signed when it was added, beside itself."""
    retired_at: str = ""
    revoked_at: str = ""
    certified_by: str = ""
    """The root that vouched for it."""
    trusted: bool = False
    """Whether a way leads to it from what the reader trusts."""

    @property
    def state(self) -> str:
        """`in use`, `retired` or `revoked`."""
        return "revoked" if self.revoked_at else "retired" if self.retired_at else "in use"


@dataclass(slots=True)
class Log:
    """What a log says."""

    keys: dict[str, LoggedKey] = field(default_factory=dict)
    """By their ids, the oldest first."""
    root: PublicKey | None = None
    root_trusted: bool = False
    head: Head = field(default_factory=Head)
    entries: int = 0
    gaps: list[Gap] = field(default_factory=list)


def read(entries: Iterable[Envelope], trusted: Collection[PublicKey] = ()) -> Log:
    """Checks a log from its first entry on.

    Args:
        trusted: keys that the reader knows from elsewhere: the one that a device pins, or the root.
            Without any, the log's first key is taken.

    Raises:
        LogError: with the number of the first entry that is wrong.
    """
    log = Log()
    anchors = {key.id for key in trusted}
    for number, one in enumerate(entries, 1):
        try:
            _take(log, one, anchors)
        except LogError as error:
            raise LogError(f"entry {number}: {error}") from error
    return log


def _take(log: Log, one: Envelope, anchors: set[str]) -> None:
    said, key, scope = _parsed(one)
    sequence, action = said.get("sequence"), said.get("action")
    follows = log.head.sequence + 1
    if type(sequence) is not int or not (
        sequence == follows or (action == Action.RESTORED and sequence > follows)
    ):
        raise LogError(f"it has the number {sequence}")
    if said["previous"] != log.head.sha256:
        raise LogError("it does not follow the entry before")
    # Those that may vouch for something of this scope.
    in_use = [
        known
        for known in log.keys.values()
        if known.state == "in use" and known.scope in {scope, INSTALLATION}
    ]
    vouching = [known for known in in_use if one.is_signed_by(known.key)]
    if action == Action.ADD:
        _add(log, one, key, scope, str(said["at"]), vouching, anchors)
    elif action == Action.RESTORED:
        _leave_out(log, said, vouching)
    elif action == Action.ROOT:
        _replace_root(log, one, key, vouching, anchors)
    else:
        known_key = log.keys.get(key.id)
        if known_key is None or known_key.scope != scope:
            raise LogError("it is about a key that was not added")
        if action == Action.CERTIFY:
            _certify(log, one, said, known_key)
        elif action not in {Action.RETIRE, Action.REVOKE}:
            raise LogError(f"there is no action {action}")
        elif not any(known.key.id != key.id for known in vouching):
            raise LogError("no other key in use has signed it")
        elif action == Action.RETIRE:
            known_key.retired_at = str(said["at"])
        else:
            known_key.revoked_at = str(said["at"])
    log.head = Head(sequence, one.sha256)
    log.entries += 1


def _parsed(one: Envelope) -> tuple[dict[str, Any], PublicKey, str]:
    if one.payload_type != PAYLOAD_TYPE:
        raise LogError("it is of another type")
    try:
        said = json.loads(one.payload)
        return said, read_jwk(said["key"]), str(said["scope"])
    except (KeyError, TypeError, ValueError) as error:
        raise LogError("it cannot be read") from error


def _add(
    log: Log,
    one: Envelope,
    key: PublicKey,
    scope: str,
    at: str,
    vouching: Sequence[LoggedKey],
    anchors: set[str],
) -> None:
    if key.id in log.keys:
        raise LogError("its key was added before")
    if not one.is_signed_by(key):
        raise LogError("the new key has not signed it")
    if not vouching and log.keys:
        raise LogError("no key in use has signed it")
    is_anchor = key.id in anchors or not (anchors or log.keys)
    # Beside a root, keys online vouch for no new one: what it has not certified is not trusted.
    is_vouched = log.root is None and any(known.trusted for known in vouching)
    log.keys[key.id] = LoggedKey(
        key,
        scope,
        at,
        tuple(known.key.id for known in vouching),
        trusted=is_anchor or is_vouched,
    )


def _leave_out(log: Log, said: dict[str, Any], vouching: Sequence[LoggedKey]) -> None:
    if not any(known.scope == INSTALLATION for known in vouching):
        raise LogError("no key of the installation in use has signed it")
    try:
        lost = Head(int(said["lost"]["sequence"]), str(said["lost"]["sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LogError("it does not say what is lost") from error
    log.gaps.append(Gap(log.head, said["sequence"], str(said["at"]), lost))


def _replace_root(
    log: Log, one: Envelope, key: PublicKey, vouching: Sequence[LoggedKey], anchors: set[str]
) -> None:
    if not vouching:
        raise LogError("no key in use has signed it")
    by_root = log.root is not None and one.is_signed_by(log.root)
    if log.root is None:
        is_trusted = any(known.trusted for known in vouching)
    else:
        # Whoever holds the keys online cannot put a root in the place of another one.
        is_trusted = log.root_trusted and by_root
    log.root, log.root_trusted = key, key.id in anchors or is_trusted


def _certify(log: Log, one: Envelope, said: dict[str, Any], known: LoggedKey) -> None:
    certificate = Envelope.from_json(said.get("certificate"))
    if log.root is None or not certificate.is_signed_by(log.root):
        raise LogError("the root has not signed the certificate")
    scope, key = read_request(certificate)
    if (scope, key) != (known.scope, known.key):
        raise LogError("the certificate is about another key")
    if not one.is_signed_by(known.key):
        raise LogError("the key has not signed it")
    known.certified_by = log.root.id
    known.trusted = known.trusted or log.root_trusted
