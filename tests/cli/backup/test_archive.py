"""The format of a backup: what is written is read, and what is not whole is refused."""

from __future__ import annotations

import base64
import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest

from auditlog.export import closing_line, entry_line, opening_line, withheld_line
from cli.backup import catalog
from cli.backup.archive import Header, Table, reading, writing
from cli.backup.crypt import ArchiveError, Key, Lock, verifiable
from cli.backup.facts import Facts, read_audit_export, read_retired
from cli.backup.keys import MissingKeyError, SealedKeys
from cli.backup.verify import UnknownSchemaError, check_schema
from cli.errors import CliError
from servicekit.data.migrate import all_migrations
from servicekit.security import age_passphrase, approved_stream, mode
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer
from tests.auditlog.test_chain import START, chain
from tests.support.paths import ROOT

PASSPHRASE = "correct horse battery"
NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
TABLES = (Table("telemetry.event", ("id", "text")), Table("audit.entry", ("id",)))
FILES = {"secrets/master_key": b"key\n", "tls/ca.crt": b"certificate"}
# More than a piece, so that a table has several.
ROWS = b"".join(b"%d\t%s\n" % (n, base64.b64encode(os.urandom(30))) for n in range(90_000))


def header(**more: object) -> Header:
    values = {
        "id": "1",
        "created_at": NOW,
        "point": NOW,
        "release": "0.1.0",
        "server": "16",
        "migrations": {},
        "tables": TABLES,
        "files": tuple(FILES),
    }
    return Header(**(values | more))  # type: ignore[arg-type]  # each value has its type


def write(path: Path, lock: Lock) -> bytes:
    with writing(path, lock, header()) as archive:
        for name, content in FILES.items():
            archive.file(name, content)
        archive.start_table("telemetry.event")
        for at in range(0, len(ROWS), 50_000):
            archive.rows(ROWS[at : at + 50_000])
        archive.end_table(ROWS.count(b"\n"))
        archive.start_table("audit.entry")
        archive.end_table(0)
    return path.read_bytes()


def read(path: Path, key: Key) -> tuple[dict[str, bytes], dict[str, bytes]]:
    with reading(path, key) as archive:
        tables = {}
        for table, pieces in archive.tables():
            found = list(pieces)
            assert all(piece.endswith(b"\n") for piece in found)
            tables[table.name] = b"".join(found)
        return archive.files, tables


IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENT = Lock(recipients=(str(IDENTITY.to_public()),))
OPENS = Key(identity=f"# remark\n{IDENTITY}\n")


@pytest.fixture(scope="module", autouse=True)
def cheap_passphrases() -> Iterator[None]:
    """Passphrases cost what they need not in tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(age_passphrase, "_LOG_N", 10)
        yield


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("archive") / "a.backup", RECIPIENT)


@pytest.fixture(scope="module")
def with_passphrase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("passphrase") / "p.backup"
    write(path, Lock(PASSPHRASE))
    return path


def test_what_is_written_is_read(tmp_path: Path, with_passphrase: Path) -> None:
    """By a passphrase and by a key; nobody else can read the file."""
    write(tmp_path / "a.backup", RECIPIENT)
    for path, key in ((with_passphrase, Key(PASSPHRASE)), (tmp_path / "a.backup", OPENS)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        files, tables = read(path, key)
        assert files == FILES
        assert tables == {"telemetry.event": ROWS, "audit.entry": b""}
        assert list(path.parent.glob("*.part")) == []


def test_standard_tools_open_it(with_passphrase: Path) -> None:
    """age and tar are enough, as the documentation says."""
    plain = pyrage.passphrase.decrypt(with_passphrase.read_bytes(), PASSPHRASE)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(plain))) as inner:
        names = inner.getnames()
    assert names[0] == "backup.json"
    assert names[-1] == "manifest.json"
    assert "data/telemetry.event/000001" in names


def test_a_wrong_key_opens_nothing(tmp_path: Path, sealed: bytes, with_passphrase: Path) -> None:
    path = tmp_path / "a.backup"
    path.write_bytes(sealed)
    other = Key(identity=str(pyrage.x25519.Identity.generate()))
    with pytest.raises(ArchiveError, match="another one"):
        read(path, other)
    with pytest.raises(CliError, match="--identity"):
        read(path, Key(PASSPHRASE))
    with pytest.raises(ArchiveError, match="another one"):
        read(with_passphrase, Key(PASSPHRASE + "!"))


def test_approved_archives_open_in_both_modes(
    tmp_path: Path, with_passphrase: Path, sealed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a passphrase where new values are approved, for keys of P-256 always; those of age say
    why FIPS mode does not open them."""
    monkeypatch.setattr(approved_stream, "_ITERATIONS", 1000)
    public, private = approved_stream.new_key_pair()
    write(tmp_path / "k.backup", Lock(recipients=(public,)))
    with pytest.raises(CliError, match="one kind"):
        write(tmp_path / "m.backup", Lock(recipients=(public, *RECIPIENT.recipients)))
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    write(tmp_path / "p.backup", Lock(PASSPHRASE))
    # While an installation changes, its backups go on for the keys that it has.
    write(tmp_path / "r.backup", RECIPIENT)
    assert read(tmp_path / "r.backup", OPENS)[0] == FILES
    assert read(with_passphrase, Key(PASSPHRASE))[0] == FILES
    own, opens = verifiable(Lock(recipients=(public,)))
    write(tmp_path / "v.backup", own)
    ways = {
        "k.backup": Key(identity=private),
        "p.backup": Key(PASSPHRASE),
        "v.backup": opens,
    }
    for required in (True, False):
        monkeypatch.setattr(mode, "_required", required)
        for name, key in ways.items():
            assert read(tmp_path / name, key)[0] == FILES
    other = approved_stream.new_key_pair()[1]
    for name, key in (("k.backup", Key(identity=other)), ("p.backup", Key(PASSPHRASE + "!"))):
        with pytest.raises(ArchiveError, match="another one"):
            read(tmp_path / name, key)
    monkeypatch.setattr(mode, "_required", True)
    with pytest.raises(CliError, match="ssh-keygen -t ecdsa"):
        write(tmp_path / "m.backup", RECIPIENT)
    (tmp_path / "a.backup").write_bytes(sealed)
    for path, key in ((with_passphrase, Key(PASSPHRASE)), (tmp_path / "a.backup", OPENS)):
        with pytest.raises(CliError, match="made with age, whose algorithms FIPS mode forbids"):
            read(path, key)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_cut_off_or_changed_archive_is_refused(
    tmp_path: Path, sealed: bytes, part: float
) -> None:
    """Wherever it happened; also when the cut is between two of age's blocks."""
    path = tmp_path / "a.backup"
    at = int(len(sealed) * part)
    changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
    blocks = (at >> 16) << 16
    start = len(sealed) - ((len(sealed) - 300) & ~0xFFFF)
    for damaged in (sealed[:at], changed, sealed[: start + blocks], sealed[:-1]):
        if damaged == sealed:
            continue
        path.write_bytes(damaged)
        with pytest.raises(ArchiveError):
            read(path, OPENS)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000])
def test_passphrases_make_what_age_makes(size: int) -> None:
    """The library opens what was made here, whatever its size; no change goes unseen."""
    content, sealed = os.urandom(size), io.BytesIO()
    age_passphrase.encrypt_io(io.BytesIO(content), sealed, PASSPHRASE)
    whole = sealed.getvalue()
    assert pyrage.passphrase.decrypt(whole, PASSPHRASE) == content
    opened = io.BytesIO()
    age_passphrase.decrypt_io(io.BytesIO(whole), opened, PASSPHRASE)
    assert opened.getvalue() == content
    for at in (5, 60, 120, 160, len(whole) - 1):
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for damaged in (whole[:at], changed, whole + b"x"):
            with pytest.raises(age_passphrase.PassphraseError):
                age_passphrase.decrypt_io(io.BytesIO(damaged), io.BytesIO(), PASSPHRASE)


def test_what_is_missing_inside_is_noticed(tmp_path: Path) -> None:
    """An archive of somebody who has the key is held to its own manifest."""
    path = tmp_path / "a.backup"
    with writing(path, RECIPIENT, header(files=())) as archive:
        archive.start_table("telemetry.event")
        archive.rows(b"1\tx\n")
        archive.end_table(2)
        archive.start_table("audit.entry")
        archive.end_table(0)
    with pytest.raises(ArchiveError, match=r"telemetry\.event"):
        read(path, OPENS)


def test_a_backup_is_a_file_of_its_own(tmp_path: Path) -> None:
    """What others laid where it is written, in a directory that they share, gets nothing of it."""
    path, others = tmp_path / "new.backup", tmp_path / "others"
    others.write_text("as it was")
    others.chmod(0o644)
    (tmp_path / "new.backup.part").symlink_to(others)
    write(path, Lock(passphrase=PASSPHRASE))
    assert others.read_text() == "as it was"
    assert not path.is_symlink()
    path.rename(tmp_path / "first.backup")
    (tmp_path / "new.backup.part").write_text("left")
    (tmp_path / "new.backup.part").chmod(0o666)
    write(path, Lock(passphrase=PASSPHRASE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_backup_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.backup"
    with pytest.raises(RuntimeError), writing(path, RECIPIENT, header()):
        raise RuntimeError("the database went away")
    assert list(tmp_path.iterdir()) == []
    path.write_text("precious")
    with pytest.raises(CliError, match="is there already"), writing(path, RECIPIENT, header()):
        pass
    assert path.read_text() == "precious"


def test_a_backup_to_the_standard_output(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with writing(Path("-"), RECIPIENT, header(tables=(), files=("a",))) as archive:
        archive.file("a", b"content")
    path = tmp_path / "a.backup"
    path.write_bytes(capfdbinary.readouterr().out)
    assert read(path, OPENS) == ({"a": b"content"}, {})


@pytest.mark.parametrize(
    ("output", "told"),
    [(">&-", "closed"), ("> /dev/full", "No space left"), ("| true", "no backup")],
)
def test_a_backup_without_bytes_fails(output: str, told: str) -> None:
    """Where nobody takes them, or not all of them: the exit code says so."""
    program = (
        "import os, sys; from pathlib import Path; from cli.errors import told\n"
        "from cli.backup.archive import Header, writing\n"
        "from cli.backup.crypt import Lock\n"
        "header = Header.read(sys.argv[1].encode())\n"
        "with told(1):\n"
        "    with writing(Path('-'), Lock(recipients=(sys.argv[2],)), header) as archive:\n"
        "        archive.file('a', os.urandom(1 << 20))\n"
    )
    given = [header(tables=(), files=("a",)).write().decode(), *RECIPIENT.recipients]
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$@" {output}', sys.executable, program, *given],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert told in done.stderr


def test_a_file_that_lost_bytes_is_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again from the disk before it gets its name."""

    def lose(descriptor: int, *_: int) -> None:
        os.pwrite(descriptor, b"lost", 100)

    monkeypatch.setattr(os, "posix_fadvise", lose)
    with pytest.raises(CliError, match="does not hold what was written"):
        write(tmp_path / "a.backup", RECIPIENT)
    assert list(tmp_path.iterdir()) == []


def test_other_formats_are_refused() -> None:
    text = header().write().replace(b"backup v1", b"backup v9")
    with pytest.raises(ArchiveError, match="v9"):
        Header.read(text)
    assert Header.read(header().write()) == header()


def test_the_schema_must_be_known() -> None:
    """A newer release's archive is refused with its name; a changed migration is not passed."""
    known = {m.schema: {str(m.version): m.checksum} for m in all_migrations()}
    check_schema(header(migrations=known))
    with pytest.raises(UnknownSchemaError, match="newer release"):
        check_schema(header(migrations={"policy": {"999": "x"}}))
    with pytest.raises(UnknownSchemaError, match="another one"):
        check_schema(header(migrations={"policy": {"1": "x"}}))


def test_the_master_key_must_open_the_keys() -> None:
    master, seed = bytes(range(32)), bytes(32)
    sealed = Sealer(master, "policy-signing").seal(seed)
    public = Signer(seed).public.raw
    good = SealedKeys(base64.b64encode(master) + b"\n")
    good.check("policy.signing_keys", public, sealed)
    assert good.opened == 1
    with pytest.raises(MissingKeyError, match="not the one"):
        SealedKeys(base64.b64encode(bytes(32))).check("policy.signing_keys", public, sealed)
    with pytest.raises(MissingKeyError, match="not the one"):
        good.check("audit.signing_key", public, sealed)
    for bad in (None, b"", b"not base64!"):
        with pytest.raises(MissingKeyError):
            SealedKeys(bad)


def test_rows_are_read_as_postgresql_writes_them() -> None:
    table = Table("x.y", ("a", "b"))
    piece = "one\\ttwo\\\\\t\\N\n\\nÜ\t\n".encode()
    assert catalog.rows_of(table, piece) == [
        {"a": "one\ttwo\\", "b": None},
        {"a": "\nÜ", "b": ""},
    ]


def test_names_from_an_archive_are_names() -> None:
    assert catalog.quoted("audit.entry") == '"audit"."entry"'
    for bad in ('a"b', "a.b.c", "A", "a; DROP", ""):
        with pytest.raises(ValueError, match="not the name"):
            catalog.quoted(bad)


def test_an_audit_export_tells_what_happened_since(tmp_path: Path) -> None:
    """What the backup has already is not taken again; of several states the last one counts."""
    device = "01930000-0000-7000-8000-0000000000dd"
    afters = [
        {"status": status, "tokenVersion": version, "serial": "SN-1", "model": "", "orgId": org}
        for status, version, org in (
            ("active", 1, "01930000-0000-7000-8000-00000000000a"),
            ("decommissioned", 1, "01930000-0000-7000-8000-00000000000a"),
        )
    ]
    entries = chain(afters)
    for entry in entries:
        object.__setattr__(entry, "record", entry.record.replace("policies/", f"devices/{device}?"))
    path = tmp_path / "export.jsonl"
    lines = [opening_line(START, complete=True), *map(entry_line, entries), closing_line(2)]
    path.write_text("".join(lines).replace("?2", "").replace("?3", ""))
    facts = Facts()
    read_audit_export(path, {}, facts)
    (known,) = facts.enrollment.devices.values()
    assert (str(known.id), known.status, known.serial) == (device, "decommissioned", "SN-1")
    facts = Facts()
    read_audit_export(path, {entries[0].tenant_id: 2}, facts)
    assert facts.enrollment.devices == {}
    path.write_text("".join([lines[0], withheld_line(entries[1]), closing_line(0)]))
    facts = Facts()
    read_audit_export(path, {}, facts)
    assert facts.unknown == {entries[1].tenant_id: 1}
    with pytest.raises(CliError, match="no export"):
        read_audit_export(Path(__file__), {}, facts)


def test_a_list_of_retired_devices(tmp_path: Path) -> None:
    path = tmp_path / "retired"
    path.write_text("# stolen\n01930000-0000-7000-8000-0000000000dd  # Room 1\n\n")
    facts = Facts()
    read_retired(path, facts)
    (retired,) = facts.enrollment.retired
    assert str(retired) == "01930000-0000-7000-8000-0000000000dd"
    path.write_text("SN-1\n")
    with pytest.raises(CliError, match="line 1"):
        read_retired(path, facts)
