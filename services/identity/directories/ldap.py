"""LDAP, as a conversation in a thread: connect, bind, search (RFC 4511, 4513).

Everything here blocks. `threads.DirectoryThreads` runs it, bounds its time as a whole, and shuts
the socket when the time is over: a server that sends a byte now and then holds no thread for
longer. Nothing is sent before TLS is there and the server's name and CA are verified.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

import ldap3
from ldap3.utils.conv import escape_bytes, escape_filter_chars

from servicekit.texts import email_fault, normal_email
from services.identity.directories.asking import (
    AwayError,
    Entry,
    Job,
    Settings,
    WrongPasswordError,
    readable,
)
from services.identity.directories.connections import Connector, told
from services.identity.directories.domain import LOGIN, GroupMode

_BATCH: Final = 50
"""People that one search asks for."""
_PAGE: Final = 500
_DEPTH: Final = 20
_MOST_GROUPS: Final = 2_000
"""Groups that are looked at for one person."""
_IN_CHAIN: Final = "1.2.840.113556.1.4.1941"
_PPOLICY: Final = "1.3.6.1.4.1.42.2.27.8.5.1"
_PAGED: Final = "1.2.840.113556.1.4.319"
_NEVER: Final = frozenset({"0", "9223372036854775807"})
_FILETIME_EPOCH: Final = 11_644_473_600
_DISABLED: Final = 2
_LOCKED_FOR_EVER: Final = "000001010000Z"
_AD_DATA: Final = "data "
_MOST_EMAIL: Final = 254
_MOST_ID: Final = 255

Attributes: TypeAlias = Mapping[str, Sequence[bytes]]


class Conversation:
    """What is asked of a directory, one thing after the other, within a job's time."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self._settings = settings
        self._job = job
        self._connector = Connector(settings, job, self.tell)
        self._service: Any = None
        self.steps: list[tuple[str, str]] = []
        """What was done, for the user who tries a directory: step and detail."""

    def close(self) -> None:
        """Ends the service account's connection."""
        if self._service is not None:
            self._end(self._service)
            self._service = None

    def tell(self, step: str, detail: str) -> None:
        """Notes what was done."""
        self.steps.append((step, readable(detail)))

    def _bind(self, connection: Any, controls: Any = None) -> Mapping[str, Any]:
        with told(self._job, "bind", "the directory"):
            connection.bind(read_server_info=False, controls=controls)
        result: Mapping[str, Any] = connection.result
        return result

    @staticmethod
    def _end(connection: Any) -> None:
        # It is over, whatever it says.
        with suppress(Exception):
            connection.strategy.close()

    def _searching(self) -> Any:
        """The service account's connection."""
        if self._service is None:
            settings = self._settings
            connection = self._connector.open(settings.bind_dn, settings.bind_password)
            result = self._bind(connection)
            if result["result"] != 0:
                self._end(connection)
                raise AwayError(
                    "bind",
                    f"the directory refuses the account that searches ({_said(result)}):"
                    " check bindDn and bindPassword",
                )
            self.tell("bind", f"{settings.bind_dn} may search")
            self._service = connection
        return self._service

    # Searches

    def _search(
        self,
        base: str,
        what: str,
        attributes: Sequence[str] = (),
        *,
        scope: str = ldap3.SUBTREE,
        most: int = 0,
    ) -> list[tuple[str, Attributes]]:
        """The entries that match, with the values of their attributes, named in lower case.

        Raises:
            AwayError: the search failed; one for a base that is not there finds nothing.
        """
        connection = self._searching()
        found: list[tuple[str, Attributes]] = []
        cookie: bytes | None = None
        while True:
            self._job.check()
            with told(self._job, "search", "the directory"):
                connection.search(
                    base,
                    what,
                    search_scope=scope,
                    attributes=list(attributes) or [ldap3.NO_ATTRIBUTES],
                    size_limit=most,
                    time_limit=max(1, int(self._job.left)),
                    paged_size=None if most or scope == ldap3.BASE else _PAGE,
                    paged_cookie=cookie,
                )
                result = connection.result
                for entry in connection.response or ():
                    # Active Directory adds references to other servers to every answer.
                    if entry.get("type") == "searchResEntry":
                        raw = {k.lower(): v for k, v in entry["raw_attributes"].items()}
                        found.append((str(entry["dn"]), raw))
            if result["result"] == 32:
                return []
            if result["result"] == 4 and most:
                return found
            if result["result"] != 0:
                raise AwayError("search", f"the directory refuses the search ({_said(result)})")
            if most and len(found) > most:
                return found
            control = (result.get("controls") or {}).get(_PAGED)
            cookie = control["value"]["cookie"] if control else None
            if not cookie:
                return found

    def _attributes(self) -> list[str]:
        reading = self._settings.reading
        wanted = [reading.id_attribute, reading.email_attribute, reading.name_attribute]
        more = ["userAccountControl", "accountExpires"] if self._settings.is_ad else []
        return [*wanted, *more, *([] if self._settings.is_ad else ["pwdAccountLockedTime"])]

    def _entry(self, dn: str, attributes: Attributes) -> Entry | None:
        """A person; `None` for an entry without a DN or an id that can be read, which is nobody."""
        reading = self._settings.reading
        subject = _subject(
            reading.id_attribute.lower(), attributes.get(reading.id_attribute.lower(), ())
        )
        if not dn.strip() or not subject:
            return None
        return Entry(
            dn=dn,
            subject=subject,
            email=_email(attributes.get(reading.email_attribute.lower(), ())),
            name=readable(_text(attributes.get(reading.name_attribute.lower(), ()))),
            active=_is_active(attributes),
        )

    def find(self, login: str) -> Entry | None:
        """The one person with an address; `None` when there is none, or more than one."""
        what = self._settings.reading.user_filter.replace(LOGIN, escape_filter_chars(login))
        found = self._search(self._settings.base_dn, what, self._attributes(), most=2)
        if len(found) != 1:
            self.tell("search", f"{'more than one' if found else 'no'} person has this address")
            return None
        entry = self._entry(*found[0])
        if entry is None:
            name = self._settings.reading.id_attribute
            self.tell("search", f"{found[0][0]} has no {name}, or one that cannot be read")
        else:
            self.tell("search", f"{entry.dn}, {entry.email or 'without an address'}")
        return entry

    def count(self) -> int:
        """How many people the filter finds, whatever their addresses; not above a thousand."""
        what = self._settings.reading.user_filter.replace(LOGIN, "*")
        return len(self._search(self._settings.base_dn, what, most=1000))

    def anybody(self) -> bool:
        """Whether the filter finds anybody, whatever the address."""
        return bool(self._search(self._settings.base_dn, self._everybody(), most=1))

    def verify(self, entry: Entry, password: str) -> None:
        """Binds as a person, on a connection of its own.

        Raises:
            WrongPasswordError: the directory refuses it.
            AwayError: the directory did not say.
        """
        if not password or "\0" in password or not entry.dn:
            # A bind without a password succeeds, for nobody (RFC 4513, 5.1.2).
            raise WrongPasswordError("EMPTY")
        connection = self._connector.open(entry.dn, password)
        try:
            policy = None if self._settings.is_ad else [(_PPOLICY, False, None)]
            result = self._bind(connection, policy)
            said = _policy_error(result)
            if result["result"] == 0 and said not in {"PPOLICY_0", "PPOLICY_2"}:
                return
            raise WrongPasswordError(_reason(result, said))
        finally:
            self._end(connection)

    def verify_nobody(self) -> None:
        """Binds as nobody who is there, which takes as long as a wrong password of somebody.

        Raises:
            AwayError: the directory did not answer.
        """
        dn = f"cn={secrets.token_hex(8)},{self._settings.base_dn}"
        connection = self._connector.open(dn, secrets.token_hex(8))
        try:
            self._bind(connection)
        finally:
            self._end(connection)

    def people(self, subjects: Sequence[str]) -> tuple[dict[str, Entry], frozenset[str]]:
        """The people with ids whom the filter finds, by their ids; and the ids of whom the answer
        says nothing that can be read."""
        found: dict[str, Entry] = {}
        unclear: set[str] = set()
        for batch in _batches(subjects, _BATCH):
            what = f"(&{self._everybody()}{self._any_of(batch)})"
            asked, bad = set(batch), False
            for dn, attributes in self._search(self._settings.base_dn, what, self._attributes()):
                entry = self._entry(dn, attributes)
                if entry is None or entry.subject not in asked:
                    bad = True
                elif entry.subject in found:
                    unclear.add(entry.subject)
                else:
                    found[entry.subject] = entry
            if bad:
                # It may be any of those who were not found.
                unclear.update(asked.difference(found))
        return {s: one for s, one in found.items() if s not in unclear}, frozenset(unclear)

    def _everybody(self) -> str:
        return self._settings.reading.user_filter.replace(LOGIN, "*")

    def _any_of(self, subjects: Sequence[str]) -> str:
        name = self._settings.reading.id_attribute
        is_guid = name.lower() == "objectguid"
        values = [
            escape_bytes(UUID(one).bytes_le) if is_guid else escape_filter_chars(one)
            for one in subjects
        ]
        return f"(|{''.join(f'({name}={value})' for value in values)})"

    # Groups

    def missing_group(self, groups: Iterable[str] | None = None) -> str | None:
        """The first mapped group, or of some, that is not there, or that the account must not
        see."""
        for group in self._settings.groups if groups is None else groups:
            if self._group_dn(group) is None:
                return group
        return None

    def count_groups(self) -> int:
        """How many groups are mapped."""
        return len(self._settings.groups)

    def _group_dn(self, group: str) -> str | None:
        """How the directory writes the name of a group."""
        found = self._search(group, "(objectClass=*)", scope=ldap3.BASE, most=1)
        return found[0][0] if len(found) == 1 else None

    def groups_of(self, entries: Sequence[Entry]) -> dict[str, frozenset[str]]:
        """The mapped groups that people are in, nested ones included, by the people's ids."""
        mode: GroupMode = self._settings.reading.group_mode
        if mode == "none" or not self._settings.groups or not entries:
            return {entry.subject: frozenset() for entry in entries}
        return self._in_chain(entries) if mode == "in-chain" else self._walk(entries)

    def _in_chain(self, entries: Sequence[Entry]) -> dict[str, frozenset[str]]:
        name = self._settings.reading.id_attribute
        found: dict[str, set[str]] = {entry.subject: set() for entry in entries}
        for batch in _batches(list(found), _BATCH):
            for group in self._settings.groups:
                inside = f"(memberOf:{_IN_CHAIN}:={escape_filter_chars(group)})"
                what = f"(&{self._any_of(batch)}{inside})"
                for dn, attributes in self._search(self._settings.base_dn, what, [name]):
                    entry = self._entry(dn, attributes)
                    if entry is None or entry.subject not in batch:
                        raise AwayError("groups", "the directory's answer fits no question")
                    found[entry.subject].add(group)
        return {subject: frozenset(groups) for subject, groups in found.items()}

    def _walk(self, entries: Sequence[Entry]) -> dict[str, frozenset[str]]:
        """From the person upwards, breadth first; a circle of groups ends it nowhere."""
        # Rows may write one group in two ways.
        named: dict[str, set[str]] = {}
        for group in self._settings.groups:
            if (dn := self._group_dn(group)) is not None:
                named.setdefault(dn.casefold(), set()).add(group)
        above: dict[str, list[str]] = {}
        found: dict[str, frozenset[str]] = {}
        for entry in entries:
            seen: set[str] = set()
            level = [entry.dn]
            for _ in range(_DEPTH):
                level = [
                    dn
                    for one in level
                    for dn in self._groups_above(one, above)
                    if (key := dn.casefold()) not in seen and not seen.add(key)  # type: ignore[func-returns-value]  # adds
                ]
                if len(seen) > _MOST_GROUPS:
                    raise AwayError("groups", f"{entry.dn} is in more than {_MOST_GROUPS} groups")
                if not level:
                    break
            found[entry.subject] = frozenset(group for dn in seen for group in named.get(dn, ()))
        return found

    def _groups_above(self, dn: str, above: dict[str, list[str]]) -> list[str]:
        key = dn.casefold()
        if key not in above:
            value = escape_filter_chars(dn)
            what = f"(|(member={value})(uniqueMember={value}))"
            base = self._settings.group_base_dn or self._settings.base_dn
            above[key] = [found for found, _ in self._search(base, what)]
        return above[key]


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _text(values: Sequence[bytes]) -> str:
    return values[0].decode("utf-8", "replace") if values else ""


def _email(values: Sequence[bytes]) -> str:
    """An address; empty when there is none that can be one."""
    try:
        email = normal_email(values[0].decode()) if values else ""
    except ValueError:
        return ""
    return email if len(email) <= _MOST_EMAIL and email_fault(email) is None else ""


def _subject(attribute: str, values: Sequence[bytes]) -> str:
    """An unchanging id; empty for one that cannot be read, for two may then look alike."""
    if len(values) != 1:
        return ""
    (value,) = values
    try:
        if attribute == "objectguid":
            return str(UUID(bytes_le=value))
        text = value.decode()
        if attribute == "entryuuid":
            # RFC 4530: one spelling.
            return text if str(UUID(text)) == text.lower() else ""
    except ValueError:
        return ""
    return text if text.isprintable() and text == text.strip() and len(text) <= _MOST_ID else ""


def _is_active(attributes: Attributes) -> bool:
    """Whether an account is neither disabled nor over (Active Directory), nor locked for good."""
    if _text(attributes.get("pwdaccountlockedtime", ())) == _LOCKED_FOR_EVER:
        return False
    control = _text(attributes.get("useraccountcontrol", ()))
    if control.isdecimal() and int(control) & _DISABLED:
        return False
    expires = _text(attributes.get("accountexpires", ()))
    if expires.isdecimal() and expires not in _NEVER:
        at = int(expires) / 10_000_000 - _FILETIME_EPOCH
        return at > datetime.now(UTC).timestamp()
    return True


def _policy_error(result: Mapping[str, Any]) -> str:
    """What OpenLDAP's password policy says beside a bind (draft-behera-ldap-password-policy)."""
    control = (result.get("controls") or {}).get(_PPOLICY)
    value = control.get("value") if control else None
    # SEQUENCE { warning [0] OPTIONAL, error [1] ENUMERATED OPTIONAL }
    if not isinstance(value, bytes) or len(value) < 2:
        return ""
    at = 2
    while at + 2 <= len(value):
        tag, length = value[at], value[at + 1]
        if tag == 0x81 and length == 1 and at + 2 < len(value):
            return f"PPOLICY_{value[at + 2]}"
        at += 2 + length
    return ""


def _reason(result: Mapping[str, Any], policy: str) -> str:
    """Why a bind failed, as audit entries name it."""
    if policy:
        return policy
    message = str(result.get("message") or "")
    if result["result"] == 49 and _AD_DATA in message:
        code = message.partition(_AD_DATA)[2].split(",")[0].strip().upper()
        if code.isascii() and code.isalnum() and len(code) <= 8:
            return f"AD_{code}"
    if result["result"] in {51, 52, 80}:
        raise AwayError("bind", f"the directory is busy ({_said(result)})")
    return "WRONG_PASSWORD" if result["result"] == 49 else f"LDAP_{result['result']}"


def _said(result: Mapping[str, Any]) -> str:
    return f"{result['result']} {result.get('description') or ''}".strip()
