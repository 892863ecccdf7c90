"""Finds what was changed, removed, reordered, cut off or forged in exported audit chains.

See `auditlog.chain` for the format that is checked. Entries pass through one by one, so that a log
of any size can be verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from auditlog.chain import NO_HASH, Checkpoint, Head
from auditlog.entries import Entry, Missing, Place, Withheld
from auditlog.findings import Finding, Kind, changed, columns, misplaced, short, span
from auditlog.told import (
    PRUNED_ACTION,
    REDACTED_ACTION,
    RESTORED_ACTION,
    Pruning,
    Redaction,
    Restore,
)

_MAX_SUSPECTS: Final = 64
"""Of how many bad entries of a chain it is looked for where they belong."""


@dataclass(frozen=True, slots=True)
class _Stray:
    """An entry of which a checkpoint knows another hash."""

    sequence: int
    hash: str
    known: str
    taken_at: str
    confirmed: int


@dataclass(slots=True)
class _Chain:
    """How far the check of one chain has come."""

    tenant_id: str
    sequence: int = 0
    stored_hash: str = NO_HASH
    true_hash: str = NO_HASH
    bad: bool = False
    """Whether the entry before has a finding of its own already."""
    ids: set[str] = field(default_factory=set)
    suspects: list[Entry] = field(default_factory=list)
    confirmed: int = 0
    """The last entry that a checkpoint agrees with."""
    strays: list[_Stray] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    blank: dict[int, Withheld] = field(default_factory=dict)
    """Entries without a record,"""
    redactions: dict[tuple[int, str], Redaction] = field(default_factory=dict)
    """and those of which an entry says that they were redacted, by place and hash."""
    left_out: bool = False
    """Whether a filter has left entries out between others,"""
    ended: bool = False
    """and whether the last one is that with which the log says that the chain ends."""
    is_part: bool = False
    """Whether the export need not go to the chain's end."""
    base: Head | None = None
    """The last entry that was pruned,"""
    until: Head | None = None
    """the last one that is to be; `None` where an archive begins behind the base,"""
    prunings: list[Pruning] = field(default_factory=list)
    """and what entries say of prunings."""

    def lost(self, sequence: int, taken_at: str) -> Restore | None:
        """The restore by which a checkpoint's entry was lost, if the chain tells of one."""
        for restore in self.restores:
            try:
                newer = datetime.fromisoformat(taken_at) > restore.point
            except (ValueError, TypeError):
                continue
            if newer and sequence > restore.kept:
                return restore
        return None


class Verifier:
    """Checks chains, one after the other.

    Args:
        checkpoints: what the chains must agree with; their signatures are checked elsewhere.
        only: the one tenant whose chain is checked; heads of others are ignored then.
        part: whether an export that a filter has cut is taken. Then what is missing before and
            behind its entries is not looked for, so the caller has to ask for it.
    """

    def __init__(
        self, checkpoints: Iterable[Checkpoint] = (), only: str = "", *, part: bool = False
    ) -> None:
        self.entries = 0
        self.chains = 0
        self.unlinked = 0
        """Entries that were left out, and whose hashes cannot be made."""
        self.left_out = 0
        """Entries that a filter left out between others."""
        self.redacted: list[Redaction] = []
        """Entries without a record of which an entry says that they were redacted,"""
        self.unnamed: list[tuple[str, int]] = []
        """those of which none in this part of a chain says it, by tenant and place,"""
        self.pruned: list[tuple[int, Pruning]] = []
        """Up to where chains were pruned, with the entries that say so,"""
        self.missing: list[Missing] = []
        """what a part of a log is without, by its own word,"""
        self.unreached: list[tuple[str, int, str]] = []
        """and which entries checkpoints know of those that are gone: tenant, place, when taken."""
        self.returned: list[Redaction] = []
        """and those that have a record all the same, as behind a restore."""
        self.takes_part = part
        self.is_part = False
        """Whether a filter may have left entries out, before and behind those that there are."""
        self._anchors: dict[str, dict[int, dict[str, str]]] = {}
        for checkpoint in checkpoints:
            for head in checkpoint.heads:
                if not only or head.tenant_id == only:
                    at = self._anchors.setdefault(head.tenant_id, {})
                    at.setdefault(head.sequence, {}).setdefault(head.hash, checkpoint.taken_at)
        self._chain = _Chain("")
        self._done: set[str] = set()

    def in_part(self) -> None:
        """Chains begin behind a base, and end where a filter has nothing more."""
        self.is_part = True

    def base(self, head: Head) -> Iterator[Finding]:
        """Begins a chain behind an entry that the export does not have."""
        yield from self._enter(head.tenant_id)
        chain = self._chain
        if chain.sequence > 0:
            yield _begins_again(chain)
            return
        chain.sequence, chain.stored_hash, chain.true_hash = head.sequence, head.hash, head.hash
        chain.strays += self._anchor(chain, head.sequence, head.hash)

    def pruned_up_to(
        self, base: Head, until: Head | None = None, *, in_archive: bool = False
    ) -> Iterator[Finding]:
        """Begins a chain behind entries that were pruned; an entry of the chain has to say so.

        Args:
            base: the last one that is gone.
            until: the last one that is to go, where a pruning was cut short.
            in_archive: whether an archive begins there, as it also does where a pruning was cut
                short, and the archive's own went on.
        """
        yield from self._enter(base.tenant_id)
        chain = self._chain
        if chain.sequence > 0:
            yield _begins_again(chain)
            return
        chain.base, chain.until = base, None if in_archive else until or base
        chain.sequence, chain.stored_hash, chain.true_hash = base.sequence, base.hash, base.hash
        chain.strays += self._anchor(chain, base.sequence, base.hash)
        for sequence, hashes in sorted(self._anchors.get(base.tenant_id, {}).items()):
            if sequence < base.sequence:
                self.unreached += [(base.tenant_id, sequence, at) for at in hashes.values()]

    def take(self, item: Entry | Withheld | Place) -> Iterator[Finding]:
        """Takes the next item of a part of a log."""
        if isinstance(item, Entry):
            return self.entry(item)
        if isinstance(item, Withheld):
            return self.withheld(item)
        return self.base(item.head) if item.is_base else self.head(item.head)

    def withheld(self, entry: Withheld) -> Iterator[Finding]:
        """Takes an entry without its record."""
        yield from self._enter(entry.tenant_id)
        chain = self._chain
        self.unlinked += not entry.digest
        if not chain.is_part or entry.redacted:
            chain.blank[entry.sequence] = entry
        else:
            chain.left_out = True
            self.left_out += 1
        found = list(_place(chain, entry.tenant_id, entry.sequence))
        if entry.sequence <= chain.sequence:
            yield from found
            return
        if entry.true_hash != entry.hash:
            message = f"entry {entry.sequence} was changed: its hash does not fit its digest"
            found.append(Finding(entry.tenant_id, entry.sequence, Kind.CHANGED, message))
        elif not found:
            found.extend(_link(chain, entry))
        found.extend(_ends_pruning(chain, entry))
        chain.strays += self._anchor(chain, entry.sequence, entry.hash)
        chain.bad = bool(found)
        chain.sequence = entry.sequence
        chain.stored_hash, chain.true_hash = entry.hash, entry.true_hash
        yield from found

    def entry(self, entry: Entry) -> Iterator[Finding]:
        """Takes the next entry; answers what is wrong with it, or with those before it."""
        yield from self._enter(entry.tenant_id)
        chain = self._chain
        self.entries += 1
        true_hash = entry.true_hash
        found = list(_place(chain, entry.tenant_id, entry.sequence))
        found.extend(_repeated(chain, entry))
        chain.ids.add(entry.columns.id)
        if entry.sequence <= chain.sequence:
            yield from found
            return
        fits = true_hash == entry.hash
        if not fits:
            if len(chain.suspects) < _MAX_SUSPECTS:
                chain.suspects.append(entry)
            else:
                found.append(changed(entry))
        elif not found:
            found.extend(_link(chain, entry))
        found.extend(columns(entry))
        found.extend(_ends_pruning(chain, entry))
        strays = list(self._anchor(chain, entry.sequence, entry.hash)) if fits else []
        chain.strays += strays
        if entry.columns.action == RESTORED_ACTION and (restore := Restore.of(entry)):
            chain.restores.append(restore)
        if entry.columns.action == REDACTED_ACTION and (named := Redaction.of(entry)):
            chain.redactions[named.sequence, named.hash] = named
        if entry.columns.action == PRUNED_ACTION and (pruning := Pruning.of(entry)):
            chain.prunings.append(pruning)
        chain.bad = bool(found or strays) or not fits
        chain.sequence = entry.sequence
        chain.stored_hash, chain.true_hash = entry.hash, true_hash
        yield from found

    def head(self, head: Head) -> Iterator[Finding]:
        """Takes the log's own word of where a chain ends, behind the chain's entries."""
        yield from self._enter(head.tenant_id)
        chain = self._chain
        last = chain.sequence
        chain.ended = last == head.sequence
        if last < head.sequence:
            yield Finding(
                chain.tenant_id,
                last + 1,
                Kind.TRUNCATED,
                f"{span(last + 1, head.sequence)} cut off: the log itself says that the chain"
                f" ends with entry {head.sequence}",
            )
        elif last > head.sequence:
            yield Finding(
                chain.tenant_id,
                head.sequence + 1,
                Kind.FORGED,
                f"{span(head.sequence + 1, last)} added without the log's knowledge: it ended the"
                f" chain with entry {head.sequence}",
            )
        elif not chain.bad and head.hash != chain.stored_hash:
            yield Finding(
                chain.tenant_id,
                last,
                Kind.CHANGED,
                f"entry {last} is not the one with which the log says that the chain ends",
            )

    def finish(self) -> Iterator[Finding]:
        """Ends the last chain, and looks for chains that are missing altogether."""
        yield from self._leave()
        if self.is_part:
            return
        for tenant_id in sorted(self._anchors.keys() - self._done):
            last = max(self._anchors[tenant_id])
            yield Finding(
                tenant_id,
                1,
                Kind.REMOVED,
                f"the whole chain is missing; a checkpoint knows it up to entry {last}",
            )

    def _enter(self, tenant_id: str) -> Iterator[Finding]:
        """Makes the chain of a tenant the one that is being checked."""
        if self._chain.tenant_id == tenant_id:
            return
        yield from self._leave()
        if tenant_id in self._done:
            yield Finding(
                tenant_id, 1, Kind.REORDERED, "the entries of the chain do not stand together"
            )
        else:
            self.chains += 1
        self._done.add(tenant_id)
        self._chain = _Chain(tenant_id, is_part=self.is_part)

    def _anchor(self, chain: _Chain, sequence: int, found: str) -> Iterator[_Stray]:
        """Where the checkpoints do not agree with an entry that has this hash."""
        for known, taken_at in self._anchors.get(chain.tenant_id, {}).get(sequence, {}).items():
            if known == found:
                chain.confirmed = sequence
                continue
            yield _Stray(sequence, found, known, taken_at, chain.confirmed)

    def _leave(self) -> Iterator[Finding]:
        """Ends the check of a chain."""
        chain, self._chain = self._chain, _Chain("")
        anchors = self._anchors.get(chain.tenant_id, {})
        yield from (_stray(chain, stray) for stray in chain.strays)
        beyond = max(anchors, default=0)
        if beyond > chain.sequence and not chain.is_part:
            yield _beyond(chain, beyond, next(iter(anchors[beyond].values())))
        yield from misplaced(chain.suspects)
        yield from self._blanks(chain)
        if chain.base is not None:
            yield from self._pruning(chain, chain.base, chain.until)
        self.returned += [one for one in chain.redactions.values() if one.id in chain.ids]

    def _pruning(self, chain: _Chain, base: Head, until: Head | None) -> Iterator[Finding]:
        """Whether an entry says that those before a base were pruned."""
        for pruning in chain.prunings:
            if (
                pruning.reaches(base.sequence, base.hash)
                if until is None
                else pruning.explains(base.sequence, until.sequence, until.hash)
            ):
                self.pruned.append((base.sequence, pruning))
                return
        message = f"{span(1, base.sequence)} removed, and no entry says that they were pruned"
        yield Finding(chain.tenant_id, 1, Kind.REMOVED, message)

    def _blanks(self, chain: _Chain) -> Iterator[Finding]:
        """Which entries without a record no entry names, or names as another one."""
        # A part may end before the entry that says it, or leave it out.
        is_all = not chain.is_part or (chain.ended and not chain.left_out)
        for sequence, blank in sorted(chain.blank.items()):
            named = chain.redactions.get((sequence, blank.hash))
            if named is not None:
                self.redacted.append(named)
                yield from _misnamed(chain, blank, named)
            elif is_all:
                message = f"entry {sequence} has no record, and no entry says that it was redacted"
                yield Finding(chain.tenant_id, sequence, Kind.CHANGED, message)
            else:
                self.unnamed.append((chain.tenant_id, sequence))


def _begins_again(chain: _Chain) -> Finding:
    message = f"behind entry {chain.sequence} the chain says that it begins"
    return Finding(chain.tenant_id, chain.sequence, Kind.REORDERED, message)


def _ends_pruning(chain: _Chain, entry: Entry | Withheld) -> Iterator[Finding]:
    """Whether the entry with which a pruning is to end is the one that the log says."""
    until = chain.until
    if until is not None and until.sequence == entry.sequence and until.hash != entry.hash:
        message = f"entry {entry.sequence} is not the one up to which the log says it is pruned"
        yield Finding(entry.tenant_id, entry.sequence, Kind.CHANGED, message)


def _misnamed(chain: _Chain, blank: Withheld, named: Redaction) -> Iterator[Finding]:
    """Whether the log still shows of a redacted entry what was there when it was redacted."""
    if not blank.id:
        return
    for name in ("id", "action", "occurred_at"):
        shown, told = getattr(blank, name), getattr(named, name)
        if shown != told:
            message = (
                f"entry {blank.sequence} was changed: the column {name} says {short(shown)},"
                f" entry {named.entry}, which redacted it, says {short(told)}"
            )
            yield Finding(chain.tenant_id, blank.sequence, Kind.CHANGED, message)


def _stray(chain: _Chain, stray: _Stray) -> Finding:
    if (restore := chain.lost(stray.sequence, stray.taken_at)) is not None:
        return _restored(chain, stray.sequence, stray.taken_at, restore)
    since = f" behind entry {stray.confirmed}" if stray.confirmed else ""
    return Finding(
        chain.tenant_id,
        stray.sequence,
        Kind.FORGED,
        f"the chain was rewritten{since}, up to entry {stray.sequence} at least: the"
        f" checkpoint of {stray.taken_at} has the hash {stray.known[:16]}… there, the log has"
        f" {stray.hash[:16]}…",
    )


def _beyond(chain: _Chain, last: int, taken_at: str) -> Finding:
    if (restore := chain.lost(last, taken_at)) is not None:
        return _restored(chain, last, taken_at, restore)
    return Finding(
        chain.tenant_id,
        chain.sequence + 1,
        Kind.TRUNCATED,
        f"{span(chain.sequence + 1, last)} cut off: the checkpoint of {taken_at} knows"
        f" the chain up to entry {last}",
    )


def _restored(chain: _Chain, last: int, taken_at: str, restore: Restore) -> Finding:
    return Finding(
        chain.tenant_id,
        restore.kept + 1,
        Kind.RESTORED,
        f"{span(restore.kept + 1, last)} lost: the checkpoint of {taken_at} knows the chain up to"
        f" entry {last}, and entry {restore.entry} says that the log was restored from a backup of"
        f" {restore.point.isoformat()}, which ends with entry {restore.kept}. The log cannot prove"
        " that it was a restore: ask whoever runs the server",
    )


def _place(chain: _Chain, tenant_id: str, number: int) -> Iterator[Finding]:
    """Whether an entry stands where its number says, once."""
    here = chain.sequence + 1
    if number > here:
        yield Finding(tenant_id, here, Kind.REMOVED, f"{span(here, number - 1)} removed")
    elif number == chain.sequence:
        message = f"there are two entries with the number {number}"
        yield Finding(tenant_id, number, Kind.FORGED, message)
    elif number < chain.sequence:
        message = f"entry {number} stands behind entry {chain.sequence}"
        yield Finding(tenant_id, number, Kind.REORDERED, message)


def _repeated(chain: _Chain, entry: Entry) -> Iterator[Finding]:
    """Whether another entry has its id."""
    number = entry.sequence
    if entry.columns.id in chain.ids:
        message = f"entry {number} repeats the id of an earlier entry, {entry.columns.id}"
        yield Finding(entry.tenant_id, number, Kind.FORGED, message)


def _link(chain: _Chain, entry: Entry | Withheld) -> Iterator[Finding]:
    """Whether the entry continues the one before."""
    if entry.previous_hash in {chain.stored_hash, chain.true_hash}:
        return
    number = entry.sequence
    if number == 1:
        message = "entry 1 does not begin the chain: it names an entry before it"
        yield Finding(entry.tenant_id, 1, Kind.FORGED, message)
    elif not chain.bad:
        message = (
            f"entry {number - 1} was changed and its hash made to fit, or entry {number} was"
            f" forged: entry {number} does not continue entry {number - 1}"
        )
        yield Finding(entry.tenant_id, number - 1, Kind.CHANGED, message)
