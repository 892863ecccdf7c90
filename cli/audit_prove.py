"""Proofs of entries that only an archive has: the tree keeps their hashes."""

from __future__ import annotations

from typing import Final

from auditlog.archive import Archive
from auditlog.entries import Entry
from auditlog.export import ExportError, entry_line
from auditlog.notes import NoteError, Proof, TreeCheckpoint
from auditlog.tree import (
    HASH_BYTES,
    TILE_WIDTH,
    ProofError,
    Subtree,
    complete_root,
    inclusion_ranges,
    leaf_hash,
    subtrees,
    tile_path,
)
from auditlog.tree import prove as prove_ranges
from cli.client import Api
from cli.errors import CliError

_LENGTH_BYTES: Final = 2


def prove(api: Api, archive: Archive, entry_id: str) -> Proof:
    """The proof that the tree of an archive has one of its entries, with hashes of the tree now.

    Raises:
        CliError: the archive has no such entry, or the installation has another tree.
    """
    entry = _find(archive, entry_id)
    try:
        tree = archive.tree()
        now = TreeCheckpoint.read(api.get_text("/api/audit/log/checkpoint"))
    except (NoteError, ValueError) as broken:
        raise CliError(f"the checkpoint of the tree: {broken}") from broken
    if now.origin != tree.origin or now.size < tree.size:
        raise CliError(
            f"the archive is of the log {tree.origin}, which ended with a restore; its own proofs"
            " hold"
        )
    if entry.leaf is None or entry.leaf >= tree.size:
        raise CliError("the archive does not say where the tree has the entry")
    ranges = inclusion_ranges(entry.leaf, tree.size)
    wanted = {one for first, end in ranges for one in subtrees(first, end)}
    roots = {subtree: _root(api, subtree) for subtree in wanted}
    hashes = prove_ranges(ranges, roots.__getitem__)
    proof = Proof(entry, entry.leaf, tuple(hashes), tree, entry_line(entry))
    try:
        proof.check()
    except ProofError as wrong:
        raise CliError(f"the installation's tree and the archive differ: {wrong}") from wrong
    return proof


def _find(archive: Archive, entry_id: str) -> Entry:
    try:
        for chain in archive.manifest.chains:
            for item in archive.items(chain.tenant_id):
                if isinstance(item, Entry) and item.columns.id == entry_id:
                    return item
    except ExportError as broken:
        raise CliError(f"{archive.directory}: {broken}") from broken
    raise CliError(f"{archive.directory} has no entry {entry_id} with its content")


def _root(api: Api, subtree: Subtree) -> bytes:
    """The root of a subtree, of a tile that has what is below it."""
    tile, offset = divmod(subtree.first, TILE_WIDTH)
    width = offset + subtree.count
    level = str(subtree.level) if subtree.level else "entries"
    found = api.get_bytes(f"/api/audit/log/tile/{level}/{tile_path(tile, width)}")
    if subtree.level:
        hashes = [found[at : at + HASH_BYTES] for at in range(0, len(found), HASH_BYTES)]
    else:
        size = HASH_BYTES + _LENGTH_BYTES
        hashes = [
            leaf_hash(found[at + _LENGTH_BYTES : at + size]) for at in range(0, len(found), size)
        ]
    if len(hashes) != width:
        raise CliError("the installation answered no piece of the tree")
    return complete_root(hashes[offset:])
