"""An entry loses its content: what stays, what is proved, and who can do it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest

from auditlog.chain import Checkpoint
from auditlog.export import verify
from auditlog.leaves import TreeVerifier
from auditlog.notes import Proof
from auditlog.verify import Verifier
from cli import audit_report
from cli import audit_verify as check
from evergreen.v1 import audit_pb2 as pb
from servicekit.data.postgres import Scope
from servicekit.errors import DomainError
from services.audit.forward.domain import Syslog
from services.audit.forward.formats import Item
from services.audit.forward.lines import Lines
from services.audit.forward.ocsf import ocsf_event
from services.audit.log import store
from services.audit.log.recorder import Recorder
from services.audit.redaction import copies
from services.audit.redaction.again import Again, Known, redact_again
from services.audit.redaction.entry import look, redact
from tests.support.audit import ORG, Audit, audit, event, message, start_audit
from tests.support.refusals import refusal

__all__ = ["audit", "start_audit"]

NAME = "nåme"
"""What events of these tests say."""
BLANK = (
    "UPDATE audit.entry SET redacted = true, record = '', salt = NULL, actor = '',"
    " actor_id = '', resource = '', record_digest = sha256(convert_to("
    "'evergreen audit record v1' || chr(10) || encode(salt, 'hex') || chr(10) || record,"
    " 'UTF8')) WHERE id = $1"
)
"""As one who has all rights in the database would do it."""


@asynccontextmanager
async def owner(audit: Audit) -> AsyncIterator[Any]:
    """A transaction of the role that owns the tables."""
    connection = await audit.database.superuser()
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def record(audit: Audit, *numbers: int, salted: bool = True) -> list[UUID]:
    sent = [event(number) for number in numbers]
    recorder = Recorder(audit.kit.database, audit.kit.clock, salted=salted)
    await recorder.handle([message(one) for one in sent])
    return [one.id for one in sent]


async def take_out(audit: Audit, entry_id: UUID, *, unsalted: bool = False) -> None:
    async with owner(audit) as connection:
        await redact(connection, entry_id, "asked for", "root", unsalted=unsalted)
    await relayed(audit)


async def relayed(audit: Audit) -> None:
    """What the outbox has is delivered, as the relay and the stream would."""
    rows = await audit.sql("DELETE FROM audit.outbox RETURNING subject, payload")
    await Recorder(audit.kit.database, audit.kit.clock, salted=True).handle(
        [message(subject=row["subject"], data=row["payload"].encode()) for row in rows]
    )


def findings(export: str, *checkpoints: Checkpoint, tree: TreeVerifier | None = None) -> list[str]:
    verifier = Verifier(checkpoints)
    return [found.message for found in verify(export.splitlines(), verifier, tree)]


async def test_the_content_goes_and_the_proof_stays(audit: Audit) -> None:
    """Of chains and tree, with checkpoints of before; nothing of the record is left."""
    ids = await record(audit, 1, 2, 3)
    before = Checkpoint.read(await audit.checkpoint())
    kept = await audit.tree_checkpoint(3)
    proof = await audit.proof(str(ids[0]))
    await take_out(audit, ids[1])
    grown = await audit.tree_checkpoint(4)
    export = await audit.export()
    assert NAME not in "".join(line for line in export.splitlines() if str(ids[1]) in line)
    assert export.count(NAME) == 2
    anchors = TreeVerifier([kept, grown])
    assert findings(export, before, tree=anchors) == []
    assert anchors.unchecked == []
    (row,) = await audit.sql("SELECT * FROM audit.entry WHERE id = $1", ids[1])
    assert (row["record"], row["actor"], row["actor_id"], row["resource"]) == ("", "", "", "")
    assert row["salt"] is None
    shown = await audit.api.GetAuditEntry(
        pb.GetAuditEntryRequest(id=str(ids[1])), metadata=audit.owner
    )
    assert (shown.redacted, shown.action, shown.actor) == (True, "policy.updated", "")
    kept_proof = Proof.read(proof)
    kept_proof.check()
    assert NAME in kept_proof.entry.record
    refused = await refusal(
        audit.api.GetAuditProof(pb.GetAuditProofRequest(id=str(ids[1])), metadata=audit.owner)
    )
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    csv = await audit.export(format="csv")
    assert csv.count(NAME) == 2
    assert [line.endswith(",true,,,") for line in csv.splitlines()].count(True) == 1
    newest, *_ = await audit.entries()
    assert newest.action == "audit.entry_redacted"
    assert newest.after["reason"] == "asked for"
    assert newest.actor == "operator (evergreen audit redact)"


async def cut(audit: Audit, *, after: int = 0, before: int = 0) -> list[str]:
    """The lines of an export of the events from one number on, or before one."""
    wish = pb.ExportAuditEntriesRequest()
    if after:
        wish.occurred_after.FromDatetime(event(after).occurred_at)
    if before:
        wish.occurred_before.FromDatetime(event(before).occurred_at)
    parts = audit.api.ExportAuditEntries(wish, metadata=audit.owner)
    return b"".join([part.data async for part in parts]).decode().splitlines()


def told(lines: list[str]) -> tuple[int, list[str]]:
    """What `evergreen audit verify --part` ends with, and says."""
    said: list[str] = []
    report = audit_report.Report(said.append)
    anchors = check.Anchors((), ())
    done = check.run(lines, anchors, "", report, part=True)
    return report.exit_code, [*said, *check.summary(report, done, anchors, kept=True)]


async def test_a_part_says_which_entries_nobody_names(audit: Audit) -> None:
    """It may end before the entry that does; one that goes to the chain's end has it."""
    ids = await record(audit, 1, 2, 3, 4)
    await take_out(audit, ids[1])
    code, said = told(await cut(audit, before=4))
    assert code == 2
    assert "1 entry without content, the first entry 2 of tenant" in said[0]
    code, said = told(await cut(audit, after=2))
    assert code == 0
    assert said[0].startswith(f"REDACTED  tenant {ORG.id}: entry 2 (policy.updated), by entry 5,")
    assert said[0].endswith(" root: asked for")
    assert "1 entry redacted, as the log says. Nothing else was changed." in said[1]
    await audit.sql(BLANK, ids[2])
    code, said = told(await cut(audit, after=2))
    assert code == 1
    assert "entry 3 has no record, and no entry says that it was redacted" in said[0]


async def test_an_entry_and_the_word_of_it_are_one_change(audit: Audit) -> None:
    """The log verifies before the relay and the stream have seen the event."""
    ids = await record(audit, 1, 2)
    async with owner(audit) as connection:
        found = await look(connection, ids[0])
        done = await redact(connection, ids[0], "asked for", "root", unsalted=False)
    assert (found.sequence, found.action) == (done.sequence, done.action) == (1, "policy.updated")
    assert found.occurred_at == event(1).occurred_at
    assert findings(await audit.export()) == []
    newest, *_ = await audit.entries()
    assert newest.action == "audit.entry_redacted"
    await relayed(audit)
    said = await audit.sql("SELECT 1 FROM audit.entry WHERE action = 'audit.entry_redacted'")
    assert len(said) == 1
    assert await audit.sql("SELECT 1 FROM audit.dead_letter") == []


async def test_what_still_shows_is_what_was_redacted(audit: Audit) -> None:
    """Action, time and id are in no hash any more: the entry that names it holds them."""
    ids = await record(audit, 1, 2)
    await take_out(audit, ids[0])
    await audit.sql("UPDATE audit.entry SET action = 'identity.logged_in' WHERE id = $1", ids[0])
    assert findings(await audit.export()) == [
        "entry 1 was changed: the column action says “identity.logged_in”, entry 3, which redacted"
        " it, says “policy.updated”"
    ]


async def test_content_that_came_back_is_told(audit: Audit) -> None:
    """As a restore of a backup of before brings it."""
    ids = await record(audit, 1, 2)
    (old,) = await audit.sql("SELECT * FROM audit.entry WHERE id = $1", ids[0])
    await take_out(audit, ids[0])
    await audit.sql(
        "UPDATE audit.entry SET redacted = false, record_digest = NULL, record = $2, salt = $3,"
        " actor = $4, actor_id = $5, resource = $6 WHERE id = $1",
        *(old[name] for name in ("id", "record", "salt", "actor", "actor_id", "resource")),
    )
    code, said = told((await audit.export()).splitlines())
    assert code == 2
    assert f"the entry {ids[0]} has its content, and entry 3 says" in said[0]
    await take_out(audit, ids[0])
    assert told((await audit.export()).splitlines())[0] == 0


async def test_who_blanks_an_entry_without_a_word_is_found(audit: Audit) -> None:
    """As one who has all rights in the database would."""
    ids = await record(audit, 1, 2, 3)
    await take_out(audit, ids[0])
    await audit.sql(BLANK, ids[1])
    assert findings(await audit.export()) == [
        "entry 2 has no record, and no entry says that it was redacted"
    ]


async def test_an_entry_that_was_redacted_still_counts(audit: Audit) -> None:
    """Another digest, or another entry in its place, is found."""
    ids = await record(audit, 1, 2)
    await take_out(audit, ids[0])
    export = await audit.export()
    lines = export.splitlines()
    at = next(n for n, line in enumerate(lines) if '"withheld"' in line)
    withheld = json.loads(lines[at])
    withheld["withheld"]["digest"] = "0" * 64
    lines[at] = json.dumps(withheld)
    assert any("does not fit its digest" in found for found in findings("\n".join(lines)))


async def test_only_the_owner_of_the_tables_and_only_that(audit: Audit) -> None:
    """Neither the service nor, without a word, anybody else; no other change passes with it."""
    ids = await record(audit, 1, 2)
    async with audit.kit.database.transaction(Scope.of(ORG.id)) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(BLANK, ids[0])
    async with audit.kit.database.transaction(Scope.of(ORG.id)) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(
                "INSERT INTO audit.entry (tenant_id, sequence, id, occurred_at, actor, actor_id,"
                " action, resource, record, previous_hash, hash, redacted) VALUES"
                " ($1, 3, $2, now(), '', '', 'audit.exported', '', '', '', '', true)",
                ORG.id,
                UUID(int=1),
            )
    announce = "SELECT set_config('evergreen.redacts', $1, true)"
    for announced, statement in (
        ("", BLANK),
        (str(ids[1]), BLANK),
        (str(ids[0]), BLANK.replace("resource = '',", "")),
        (str(ids[0]), BLANK.replace("SET redacted", "SET action = 'x', redacted")),
        (str(ids[0]), BLANK.replace("record v1", "record v2")),
        (str(ids[0]), "UPDATE audit.entry SET actor = 'x' WHERE id = $1"),
        (str(ids[0]), "DELETE FROM audit.entry WHERE id = $1"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only grows"):
            async with owner(audit) as connection:
                await connection.execute(announce, announced)
                await connection.execute(statement, ids[0])
    async with owner(audit) as connection:
        await connection.execute(announce, str(ids[0]))
        await connection.execute(BLANK, ids[0])
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only grows"):
        async with owner(audit) as connection:
            await connection.execute(announce, str(ids[0]))
            await connection.execute("UPDATE audit.entry SET record = 'x' WHERE id = $1", ids[0])


async def test_what_cannot_be_redacted(audit: Audit) -> None:
    """Twice; what is not there; what says that another one was; v1 only when it is asked for."""
    (salted,) = await record(audit, 1)
    (plain,) = await record(audit, 3, salted=False)
    await take_out(audit, salted)
    (told,) = await audit.sql("SELECT id FROM audit.entry WHERE action = 'audit.entry_redacted'")
    for entry_id, reason in (
        (salted, "ENTRY_REDACTED"),
        (UUID(int=1), "NOT_FOUND"),
        (told["id"], "ENTRY_NEEDED"),
        (plain, "ENTRY_UNSALTED"),
    ):
        with pytest.raises(DomainError) as refused:
            await take_out(audit, entry_id)
        assert refused.value.reason == reason
    await take_out(audit, plain, unsalted=True)
    verifier = Verifier()
    assert list(verify((await audit.export()).splitlines(), verifier)) == []
    assert verifier.unlinked == 1


async def test_what_comes_again_is_not_kept_again(audit: Audit) -> None:
    """The stream may deliver the event once more: neither the log nor the quarantine has it."""
    sent = event(1)
    recorder = Recorder(audit.kit.database, audit.kit.clock, salted=True)
    await recorder.handle([message(sent)])
    await take_out(audit, sent.id)
    await recorder.handle([message(sent)])
    assert await audit.sql("SELECT 1 FROM audit.dead_letter") == []
    (row,) = await audit.sql("SELECT record FROM audit.entry WHERE id = $1", sent.id)
    assert row["record"] == ""


async def test_forwarders_send_what_is_left(audit: Audit) -> None:
    """A message with the hashes, so that the receiver's chain has no gap."""
    (entry_id,) = await record(audit, 1)
    await take_out(audit, entry_id)
    async with audit.kit.database.transaction(Scope.of(ORG.id)) as connection:
        found = await store.entry(connection, Scope.of(ORG.id), entry_id)
    assert found is not None
    item = Item.of(found)
    assert item.record["auditredacted"] is True
    assert item.record["auditdigest"] == found.digest
    assert item.record["audithash"] == found.hash
    assert NAME not in json.dumps(item.record, ensure_ascii=False)
    assert "auditredacted=true" in ocsf_event(item.record, "x.example")["metadata"]["labels"]
    for form in ("json", "cef"):
        line = Lines(Syslog("x", 1, format=form), "x.example").message(item)  # type: ignore[arg-type]  # one of the two
        assert b' redacted="true"]' in line


async def test_copies_go_too(audit: Audit) -> None:
    """Of the quarantine and of outboxes; reports that have the entry are named, then deleted."""
    ids = await record(audit, 1, 2)
    await take_out(audit, ids[0])
    sent = event(1)
    await audit.sql(
        "INSERT INTO policy.outbox (id, subject, payload, published_at)"
        " VALUES ($1, $3, $4, now()), ($2, $3, $4, now())",
        *(*ids, sent.subject, sent.payload()),
    )
    for digest, subject, named in ((b"1", sent.subject, ids[0]), (b"2", sent.subject, ids[1])):
        await audit.sql(
            "INSERT INTO audit.dead_letter VALUES ($1, $2, convert_to($3, 'UTF8'), 'x', now())",
            digest,
            subject,
            json.dumps({"id": str(named)}),
        )
    hashes = [row["hash"].hex() for row in await audit.sql("SELECT * FROM audit.entry ORDER BY 2")]
    # A part ends within the hash; the second report has another entry.
    texts = {1: (f"a,{hashes[0][:20]}", f"{hashes[0][20:]},b"), 2: (f"a,{hashes[1]}", "b")}
    for number, parts in texts.items():
        await audit.sql(
            "INSERT INTO audit.report (id, tenant_id, kind, parameters, formats, status, as_of,"
            " requested_by, asked_from, expires_at) VALUES ($1, $2, 'audit-extract', '{}',"
            " '{csv}', 'ready', now(), 'a@school.example', $2, now() + interval '1 day')",
            UUID(int=number),
            ORG.id,
        )
        for part, text in enumerate(parts):
            await audit.sql(
                "INSERT INTO audit.report_part VALUES ($1, $2, 'a.csv', $3, $4)",
                UUID(int=number),
                ORG.id,
                part,
                text.encode(),
            )
    async with owner(audit) as connection:
        found = await copies.remove(connection, ids[0], "root", reports_too=False)
    assert (found.dead_letters, found.outboxes) == (1, 1)
    assert [one.id for one in found.reports] == [UUID(int=1)]
    assert [row["id"] for row in await audit.sql("SELECT id FROM policy.outbox")] == [ids[1]]
    assert [row["digest"] for row in await audit.sql("SELECT digest FROM audit.dead_letter")] == [
        b"2"
    ]
    async with owner(audit) as connection:
        await copies.remove(connection, ids[0], "root", reports_too=True)
    left = await audit.sql("SELECT DISTINCT report_id FROM audit.report_part")
    assert [row["report_id"] for row in left] == [UUID(int=2)]
    (row,) = await audit.sql("SELECT payload FROM audit.outbox")
    said = json.loads(row["payload"])["data"]
    assert (said["action"], said["resource"]) == ("audit.report_deleted", f"reports/{UUID(int=1)}")
    assert said["actor"] == "operator (evergreen audit redact)"


async def test_what_came_back_is_redacted_again(audit: Audit) -> None:
    """By what the log says; a second time there is nothing to do."""
    ids = await record(audit, 1, 2)
    (old,) = await audit.sql("SELECT * FROM audit.entry WHERE id = $1", ids[0])
    await take_out(audit, ids[0])
    await audit.sql(
        "UPDATE audit.entry SET redacted = false, record_digest = NULL, record = $2, salt = $3,"
        " actor = $4, actor_id = $5, resource = $6 WHERE id = $1",
        *(old[name] for name in ("id", "record", "salt", "actor", "actor_id", "resource")),
    )
    for done in (1, 0):
        known = Known()
        async with owner(audit) as connection:
            await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
            await known.read(connection)
            assert known.reasons == {ids[0]: "asked for"}
            again = await redact_again(connection, known.reasons, "root", "x")
        assert again == Again(done)
    assert told((await audit.export()).splitlines())[0] == 0
