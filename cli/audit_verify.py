"""`evergreen audit verify`: the check itself is `auditlog.verify`, this finds its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from auditlog.archive import Archive, ArchiveError, Archives
from auditlog.chain import Checkpoint, CheckpointError
from auditlog.export import ExportError, verify
from auditlog.findings import Finding, Kind
from auditlog.keys import CheckpointKey
from auditlog.keys import read_keys as read_pem
from auditlog.leaves import Leaves, Published, TreeVerifier
from auditlog.notes import Consistency, NoteError, Proof, TreeCheckpoint, is_tree_checkpoint
from auditlog.tree import HASH_BYTES, TILE_WIDTH, ProofError, check_consistency, tile_path
from auditlog.verify import Verifier
from cli.client import Api, RefusedError, read_text
from cli.errors import CliError

_MOST_SHOWN: Final = 100
_ATTEMPTS: Final = 5
VERIFIED: Final = 0
TAMPERED: Final = 1
NOT_CHECKED: Final = 2


@dataclass(slots=True)
class Report:
    """What a person is told, and the exit code."""

    say: Callable[[str], None]
    tampered: int = 0
    unchecked: list[str] = field(default_factory=list)
    elsewhere: int = 0
    """How many of these cannot be checked without the rest of the log."""

    def found(self, text: str) -> None:
        """Something was tampered with."""
        self.tampered += 1
        if self.tampered <= _MOST_SHOWN:
            self.say(f"TAMPERED  {text}")

    def could_not(self, text: str, *, elsewhere: bool = False) -> None:
        """Something could not be checked."""
        self.unchecked.append(text)
        self.elsewhere += elsewhere
        self.say(f"UNCHECKED {text}")

    def lost(self, text: str) -> None:
        """Something is missing that the log itself says was lost by a restore."""
        self.unchecked.append(text)
        self.say(f"RESTORED  {text}")

    @property
    def is_good(self) -> bool:
        """Whether all is verified that can be verified of a part of the log."""
        return not self.tampered and len(self.unchecked) == self.elsewhere

    @property
    def exit_code(self) -> int:
        """0: verified, 1: tampering was found, 2: something could not be checked."""
        if self.tampered:
            return TAMPERED
        return NOT_CHECKED if self.unchecked else VERIFIED


@contextmanager
def never_mistaken() -> Iterator[None]:
    """A defect of this program ends with another code than tampering does.

    Raises:
        CliError: in place of everything that nobody expected.
    """
    try:
        yield
    except (CliError, BrokenPipeError):
        raise
    except Exception as error:
        raise CliError(f"the check failed: {type(error).__name__}: {error}") from error


def read_keys(path: Path) -> list[CheckpointKey]:
    """The public keys in a PEM file.

    Raises:
        CliError: there are none.
    """
    try:
        return read_pem(read_text(path))
    except ValueError as broken:
        raise CliError(f"{path} is no file of public keys: {broken}") from broken


@dataclass(frozen=True, slots=True)
class Kept:
    """Checkpoints that were kept, with the names of their files."""

    heads: Sequence[tuple[str, Checkpoint]] = ()
    """Of the chains,"""
    trees: Sequence[tuple[str, TreeCheckpoint]] = ()
    """and of the tree over all entries."""

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Kept:
        """Reads files of both kinds.

        Raises:
            CliError: one of them is no checkpoint.
        """
        heads, trees = [], []
        for path in paths:
            text = read_text(path)
            try:
                if is_tree_checkpoint(text):
                    trees.append((str(path), TreeCheckpoint.read(text)))
                else:
                    heads.append((str(path), Checkpoint.read(text)))
            except (CheckpointError, NoteError) as broken:
                raise CliError(f"{path} is no checkpoint: {broken}") from broken
        return cls(heads, trees)


class Signed(Protocol):
    """A checkpoint of either kind."""

    @property
    def key_id(self) -> str:
        """The key that it names."""

    def signed_by(self, keys: Iterable[CheckpointKey]) -> bool | None:
        """Whether the signature is good; `None` when none of the keys is the one it names."""


S = TypeVar("S", bound=Signed)


def trusted(
    checkpoints: Iterable[tuple[str, S]], keys: Sequence[CheckpointKey], report: Report
) -> list[S]:
    """The checkpoints whose signature is good, or cannot be judged; forged ones are reported."""
    result = []
    for name, checkpoint in checkpoints:
        signed = checkpoint.signed_by(keys)
        if signed is False:
            report.found(f"the checkpoint {name} is forged: its signature does not fit its text")
            continue
        if signed is None:
            report.could_not(
                f"the signature of the checkpoint {name}: its key {checkpoint.key_id} is not"
                " among the public keys; give the right ones with --public-key"
            )
        result.append(checkpoint)
    return result


@dataclass(frozen=True, slots=True)
class Anchors:
    """What an export must agree with."""

    heads: Sequence[Checkpoint]
    trees: Sequence[TreeCheckpoint]
    kept: Mapping[str, int] = field(default_factory=dict)
    """Tenant → the last entry of its chain that was kept outside."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.heads) + len(self.trees)


def anchors(
    kept: Kept, keys: Sequence[CheckpointKey], report: Report, now: Checkpoint | None = None
) -> Anchors:
    """Those that can be trusted, and what the installation states now."""
    heads = trusted(kept.heads, keys, report)
    last: dict[str, int] = {}
    for head in (head for checkpoint in heads for head in checkpoint.heads):
        last[head.tenant_id] = max(head.sequence, last.get(head.tenant_id, 0))
    stated = trusted([("of now", now)] if now else [], keys, report)
    return Anchors([*heads, *stated], trusted(kept.trees, keys, report), last)


def run(
    export: Iterable[str],
    anchors: Anchors,
    org_id: str,
    report: Report,
    *,
    part: bool = False,
    published: Published | None = None,
    archives: Sequence[Archive] = (),
) -> Verifier:
    """Checks an export and reports all that is found.

    Args:
        export: its lines.
        anchors: the checkpoints that it must agree with.
        org_id: the one tenant whose chain is checked; empty for all.
        report: takes the findings.
        part: whether an export that a filter has cut is taken.
        published: the leaves of the tree, when there is a connection.
        archives: what has entries that were pruned; their manifests and files were checked.
    """
    heads = [*anchors.heads, *(archive.anchor for archive in archives)]
    verifier = Verifier(heads, only=org_id, part=part)
    tree = TreeVerifier(anchors.trees, published, anchors.kept)
    try:
        for finding in verify(export, verifier, tree, Archives(archives)):
            _tell(finding, report)
    except ExportError as broken:
        report.could_not(f"the export: {broken}")
    if verifier.unlinked:
        report.could_not(
            f"{_count(verifier.unlinked, 'entry')} that the filter left out, or redacted: without a"
            " salt (format v1) a hash cannot be made without the record"
        )
    for text in tree.unchecked:
        report.could_not(text)
    _redactions(verifier, report)
    _prunings(verifier, report)
    for tenant_id, last in list(tree.reach.items())[: 0 if report.tampered else _MOST_SHOWN]:
        report.say(f"KEPT      tenant {tenant_id}: the kept checkpoints know it up to entry {last}")
    return verifier


def _tell(finding: Finding, report: Report) -> None:
    where = f"tenant {finding.tenant_id}" if finding.tenant_id else "the tree"
    text = f"{where}: {finding.kind.value}: {finding.message}"
    if finding.kind is Kind.RESTORED:
        report.lost(text)
    else:
        report.found(text)


def open_archives(
    paths: Iterable[Path], keys: Sequence[CheckpointKey], report: Report
) -> list[Archive]:
    """The archives in some directories, of which manifests and files are good.

    Raises:
        CliError: one of them is no archive.
    """
    found = []
    for path in paths:
        try:
            archive = Archive.open(path)
        except ArchiveError as broken:
            raise CliError(str(broken)) from broken
        wrong = list(archive.check_files())
        for text in wrong:
            report.found(f"the archive {path}: {text}")
        if trusted([(f"of the archive {path}", archive.manifest)], keys, report) and not wrong:
            found.append(archive)
    return found


def run_archive(
    archive: Archive, anchors: Anchors, keys: Sequence[CheckpointKey], report: Report
) -> Verifier:
    """Checks the entries of an archive, as far as it goes, and reports all that is found."""
    verifier = Verifier(anchors.heads, part=True)
    verifier.in_part()
    try:
        tree = archive.tree()
        if trusted([("of the archive's tree", tree)], keys, report):
            _archived_tree(tree, anchors, report)
        for chain in archive.manifest.chains:
            proof = archive.proof(chain)
            if proof is not None:
                check_proof(proof, keys, (), report)
                if proof.checkpoint.text != tree.text:
                    report.found(f"tenant {chain.tenant_id}: the proof is of another tree")
            for finding in archive.verify(chain, verifier, proof):
                _tell(finding, report)
    except (ExportError, ArchiveError, NoteError) as broken:
        report.could_not(f"the archive: {broken}")
    _redactions(verifier, report)
    return verifier


def _archived_tree(tree: TreeCheckpoint, anchors: Anchors, report: Report) -> None:
    """Compares the checkpoint in an archive with those that were kept, of the same size."""
    for kept in anchors.trees:
        if (kept.origin, kept.size) == (tree.origin, tree.size) and kept.root != tree.root:
            report.found("the tree of the archive is not the one of the checkpoint that was kept")


def _prunings(verifier: Verifier, report: Report) -> None:
    """Says which entries were pruned, and what could be checked with an archive alone."""
    for base, one in verifier.pruned[:_MOST_SHOWN]:
        report.say(
            f"PRUNED    tenant {one.tenant_id}: begins with entry {base + 1}, by entry {one.entry},"
            f" {_printable(one.actor_id)}; before it: archive {_printable(one.archive)}"
        )
    for missing in verifier.missing[:_MOST_SHOWN]:
        report.say(
            f"PRUNED    tenant {missing.head.tenant_id}: this part is without entries up to"
            f" {missing.head.sequence}, of {missing.last_occurred_at:%Y-%m-%d} and before, as the"
            f" log says: archive {_printable(missing.archive)}"
        )
    for tenant_id, sequence, taken_at in verifier.unreached[:_MOST_SHOWN]:
        report.could_not(
            f"tenant {tenant_id}: the checkpoint of {taken_at} knows entry {sequence}, which was"
            " pruned; give the archive with --archive"
        )


def _redactions(verifier: Verifier, report: Report) -> None:
    """Says which entries lost their content, and what is not as it should be with them.

    The log proves that the content went and what it says of that, not that it was allowed to.
    """
    for one in verifier.redacted[:_MOST_SHOWN]:
        report.say(
            f"REDACTED  tenant {one.tenant_id}: entry {one.sequence} ({one.action}), by entry"
            f" {one.entry}, {_printable(one.actor_id)}: {_printable(one.reason)}"
        )
    if verifier.unnamed:
        tenant_id, sequence = verifier.unnamed[0]
        report.could_not(
            f"{_count(len(verifier.unnamed), 'entry')} without content, the first entry"
            f" {sequence} of tenant {tenant_id}: this part has no entry that says that they were"
            " redacted; verify the whole log",
            elsewhere=True,
        )
    for one in verifier.returned[:_MOST_SHOWN]:
        report.lost(
            f"tenant {one.tenant_id}: the entry {one.id} has its content, and entry {one.entry}"
            " says that it was redacted: a restore brought it back; redact it again"
        )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def published(api: Api, trees: Sequence[TreeCheckpoint], report: Report) -> Published | None:
    """The leaves that the kept checkpoints know; asked for before an export is begun.

    `None` when there are none, or the installation does not answer them, which is reported.
    """
    if not trees:
        return None
    found = Leaves()
    try:
        now = TreeCheckpoint.read(api.get_text("/api/audit/log/checkpoint"))
        known = [kept.size for kept in trees if kept.origin == now.origin]
        size = max((size for size in known if size <= now.size), default=0)
        for index, data in enumerate(leaves(api, size)):
            found[index] = data
    except RefusedError as refused:
        if refused.reason == "AUDIT_TREE_DAMAGED":
            report.found(f"the tree: {refused}")
        else:
            report.could_not(f"the leaves of the tree: {refused}")
        return None
    except (CliError, NoteError) as error:
        report.could_not(f"the leaves of the tree: {error}")
        return None
    return Published(now.origin, size, found)


def leaves(api: Api, size: int) -> Iterator[bytes]:
    """The data of the first leaves of the tree, as the installation publishes them.

    Raises:
        CliError: it does not.
    """
    for first in range(0, size, TILE_WIDTH):
        width = min(TILE_WIDTH, size - first)
        bundle = api.get_bytes(
            f"/api/audit/log/tile/entries/{tile_path(first // TILE_WIDTH, width)}"
        )
        if len(bundle) != width * (HASH_BYTES + 2):
            raise CliError("the installation answered no leaves of the tree")
        for at in range(0, len(bundle), HASH_BYTES + 2):
            yield bundle[at + 2 : at + 2 + HASH_BYTES]


def consistency(api: Api, size: int) -> Consistency:
    """The proof that a tree of so many leaves is in the present one.

    Raises:
        CliError: there is none, as when the present tree has fewer.
    """
    try:
        return Consistency.of(api.get("/api/audit/log/consistency", **{"from": str(size)}))
    except NoteError as broken:
        raise CliError(f"the installation answered: {broken}") from broken


def continues(
    newest: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    kept: Iterable[tuple[str, TreeCheckpoint]],
    report: Report,
    ask: Callable[[int], Consistency],
) -> TreeCheckpoint:
    """Checks that a tree holds those that were kept, as they were.

    Answers the checkpoint that may be kept in their place: that with which the proof ends.
    """
    if not trusted([("of now", newest)], keys, report):
        return newest
    for name, checkpoint in kept:
        if not trusted([(name, checkpoint)], keys, report):
            continue
        if checkpoint.origin == newest.origin and checkpoint.size != newest.size:
            newest = _continued(name, checkpoint, newest, keys, report, ask)
        else:
            same_tree(name, checkpoint, newest, keys, report, ask)
    return newest


def _continued(
    name: str,
    kept: TreeCheckpoint,
    newest: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    report: Report,
    ask: Callable[[int], Consistency],
) -> TreeCheckpoint:
    """The checkpoint of which one signed answer proves that it continues a kept one."""
    if kept.size > newest.size:
        report.found(f"the tree became shorter: it had {kept.size} leaves, and has {newest.size}")
        return newest
    answer = ask(kept.size)
    now = answer.checkpoint
    if not _is_of(newest.origin, now, keys, report):
        return newest
    if now.size < newest.size:
        report.found(f"the tree became shorter: it had {newest.size} leaves, and has {now.size}")
    elif now.size == newest.size and now.root != newest.root:
        report.found(f"the installation signed two trees of {now.size} leaves")
    else:
        _contains(name, kept, answer, report)
    return now


def check_proof(
    proof: Proof,
    keys: Sequence[CheckpointKey],
    kept: Iterable[tuple[str, TreeCheckpoint]],
    report: Report,
    ask: Callable[[int], Consistency] | None = None,
) -> None:
    """Checks a proof, and that its checkpoint and those that were kept are of one tree.

    Args:
        proof: of an entry.
        keys: that are trusted.
        kept: checkpoints of the tree.
        report: takes the findings.
        ask: answers the proof that an older tree is in the present one, when there is a
            connection.
    """
    if not trusted([("in the proof", proof.checkpoint)], keys, report):
        return
    try:
        proof.check()
    except ProofError as wrong:
        report.found(str(wrong))
        return
    for name, checkpoint in kept:
        if trusted([(name, checkpoint)], keys, report):
            same_tree(name, checkpoint, proof.checkpoint, keys, report, ask)


def told_of(proof: Proof, report: Report) -> list[str]:
    """What the end of the output says of a proof."""
    if report.tampered:
        return ["Nothing is proved."]
    if report.unchecked:
        return ["Not everything could be checked."]
    entry = proof.entry
    checkpoint = proof.checkpoint
    at = entry.columns.occurred_at.isoformat().replace("+00:00", "Z")
    return [
        f"Proved: entry {entry.sequence} of tenant {entry.tenant_id} is leaf {proof.index} of"
        f" {checkpoint.size:,} of the log {checkpoint.origin}.",
        f"It says: {at} {entry.columns.actor}: {entry.columns.action} {entry.columns.resource}",
    ]


def same_tree(
    name: str,
    kept: TreeCheckpoint,
    other: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    report: Report,
    ask: Callable[[int], Consistency] | None,
) -> None:
    """Checks that a kept checkpoint and another one are of one tree; of both orders of size."""
    if kept.origin != other.origin:
        report.could_not(f"the checkpoint {name}: it is of another log, {kept.origin}")
    elif kept.size == other.size:
        if kept.root != other.root:
            report.found(f"the checkpoint {name} is of another tree with as many leaves")
    elif ask is None:
        report.could_not(f"the checkpoint {name}: that needs a connection")
    else:
        _both_in_one(name, kept, other, keys, report, ask)


def _both_in_one(
    name: str,
    kept: TreeCheckpoint,
    other: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    report: Report,
    ask: Callable[[int], Consistency],
) -> None:
    """Checks that two trees are in one and the same present tree."""
    for _ in range(_ATTEMPTS):
        answers = [ask(one.size) for one in (kept, other)]
        first, second = (answer.checkpoint for answer in answers)
        if first.size == second.size:
            break
    else:
        # The log grows between the two answers, or does not want to be compared.
        report.could_not(f"the checkpoint {name}: the tree grew meanwhile; try again")
        return
    if not all(_is_of(kept.origin, now, keys, report) for now in (first, second)):
        return
    if first.root != second.root:
        report.found(f"the installation signed two trees of {first.size} leaves")
        return
    for one, answer in zip((kept, other), answers, strict=True):
        if not _contains(name, one, answer, report):
            return


def _is_of(origin: str, now: TreeCheckpoint, keys: Sequence[CheckpointKey], report: Report) -> bool:
    """Whether the checkpoint of an answer is signed, and of this log."""
    if not trusted([("in the answer", now)], keys, report):
        return False
    if now.origin != origin:
        report.could_not(f"the tree: the answer is of another log, {now.origin}; try again")
        return False
    return True


def _contains(name: str, one: TreeCheckpoint, answer: Consistency, report: Report) -> bool:
    """Whether the tree of an answer holds all that a checkpoint knows."""
    now = answer.checkpoint
    try:
        check_consistency(one.size, one.root, now.size, now.root, answer.hashes)
    except ProofError as wrong:
        report.found(f"what the checkpoint {name} knows: {wrong}")
        return False
    return True


def read_lines(path: Path) -> Iterator[str]:
    """The lines of an exported file; only a line feed ends one.

    Raises:
        CliError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{path} is not UTF-8") from error


def summary(report: Report, verifier: Verifier, anchors: Anchors, *, kept: bool) -> list[str]:
    """What the end of the output says."""
    entries, chains = _count(verifier.entries, "entry"), _count(verifier.chains, "chain")
    size = f"{entries} in {chains}"
    if report.tampered:
        more = report.tampered - _MOST_SHOWN
        return [
            *([f"… and {more:,} findings more."] if more > 0 else []),
            f"The audit log was tampered with: {_count(report.tampered, 'finding')} in {size}.",
        ]
    if report.unchecked:
        return [f"The audit log was not fully checked; in {size} nothing is wrong so far."]
    redacted = len(verifier.redacted)
    text = [
        f"Verified: {size}, {_count(anchors.count, 'checkpoint')}."
        + (
            f" {_count(redacted, 'entry')} redacted, as the log says. Nothing else was changed."
            if redacted
            else " Nothing was changed."
        )
    ]
    if verifier.pruned:
        text.append(
            f"{_count(len(verifier.pruned), 'chain')} without the entries before them: these are in"
            " archives, which --archive checks."
        )
    if verifier.is_part:
        out = verifier.left_out
        between = f"; {_count(out, 'entry')} between others left out" if out else ""
        text.append(f"That was a part of the log, as a filter left it{between}.")
    if not kept:
        text.append(
            "No earlier checkpoint was given: had the whole log been written anew, this would not"
            " show it. Keep the output of `evergreen audit checkpoint` somewhere else, and give it"
            " with --checkpoint."
        )
    return text


def _count(number: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number:,} {what if number == 1 else plural}"
