"""`evergreen audit verify`: the check itself is `auditlog.verify`, this finds its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from auditlog.archive import Archive, ArchiveError, Archives
from auditlog.chain import Checkpoint
from auditlog.export import ExportError, verify
from auditlog.findings import Finding, Kind
from auditlog.keys import CheckpointKey
from auditlog.leaves import Leaves, Published, TreeVerifier
from auditlog.notes import NoteError, TreeCheckpoint
from auditlog.tree import HASH_BYTES, TILE_WIDTH, tile_path
from auditlog.verify import Verifier
from cli.audit_report import MOST_SHOWN, Kept, Report, trusted
from cli.audit_tree import check_proof
from cli.client import Api, RefusedError
from cli.errors import CliError


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
    for tenant_id, last in list(tree.reach.items())[: 0 if report.tampered else MOST_SHOWN]:
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
    for base, one in verifier.pruned[:MOST_SHOWN]:
        report.say(
            f"PRUNED    tenant {one.tenant_id}: begins with entry {base + 1}, by entry {one.entry},"
            f" {_printable(one.actor_id)}; before it: archive {_printable(one.archive)}"
        )
    for missing in verifier.missing[:MOST_SHOWN]:
        report.say(
            f"PRUNED    tenant {missing.head.tenant_id}: this part is without entries up to"
            f" {missing.head.sequence}, of {missing.last_occurred_at:%Y-%m-%d} and before, as the"
            f" log says: archive {_printable(missing.archive)}"
        )
    for tenant_id, sequence, taken_at in verifier.unreached[:MOST_SHOWN]:
        report.could_not(
            f"tenant {tenant_id}: the checkpoint of {taken_at} knows entry {sequence}, which was"
            " pruned; give the archive with --archive"
        )


def _redactions(verifier: Verifier, report: Report) -> None:
    """Says which entries lost their content, and what is not as it should be with them.

    The log proves that the content went and what it says of that, not that it was allowed to.
    """
    for one in verifier.redacted[:MOST_SHOWN]:
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
    for one in verifier.returned[:MOST_SHOWN]:
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
        more = report.tampered - MOST_SHOWN
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
