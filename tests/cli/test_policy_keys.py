"""`evergreen keys`: the log is checked, and keys are certified, without a network."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app
from servicekit.keys.log import (
    INSTALLATION,
    Action,
    Envelope,
    Head,
    certificate_request,
    entry,
    scope_of,
)
from servicekit.security.signing import Signer, read_pem_bundle
from services.policy.authoring.document import App, Apps, Document
from services.policy.authoring.goencoding import encode_document
from services.policy.keys.signing import envelope
from tests.support.policy import ORG

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
FIRST, SECOND, SCHOOL, STRANGE = (Signer(bytes([number]) * 32) for number in range(1, 5))
DOCUMENT = encode_document(Document(apps=Apps((App("a<b", "stable", "flathub"),))))


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["keys", *map(str, arguments)])
    return done.exit_code, done.output


def written(path: Path, entries: list[Envelope]) -> Path:
    path.write_text("".join(json.dumps(one.to_json()) + "\n" for one in entries))
    return path


@pytest.fixture
def entries() -> list[Envelope]:
    """A log of a rotation and of a key of a school, which was lost."""
    said = [
        (Action.ADD, None, FIRST, [FIRST]),
        (Action.ADD, None, SECOND, [SECOND, FIRST]),
        (Action.ADD, ORG.id, SCHOOL, [SCHOOL, SECOND]),
        (Action.RETIRE, None, FIRST, [SECOND]),
        (Action.REVOKE, ORG.id, SCHOOL, [SECOND]),
    ]
    found: list[Envelope] = []
    for number, (action, tenant, key, signers) in enumerate(said):
        head = Head(number, found[-1].sha256 if found else "")
        found.append(entry(head, action, scope_of(tenant), key.public, NOON, signers))
    return found


def test_an_auditor_checks_a_policy(tmp_path: Path, entries: list[Envelope]) -> None:
    """Which key of the log has signed it; a key in wrong hands, a strange one, and a changed
    document are told, and the exit code says so."""
    log = written(tmp_path / "log", entries)
    pinned = tmp_path / "pinned.pem"
    pinned.write_text(FIRST.public.pem())
    policy = tmp_path / "policy.json"
    for signer, code, said in (
        (FIRST, 0, "which is retired"),
        (SECOND, 0, "VERIFIED"),
        (SCHOOL, 1, "NOT TRUSTED"),
        (STRANGE, 1, "no key of the log"),
    ):
        policy.write_bytes(envelope("7", signer.sign(DOCUMENT), DOCUMENT))
        found = run("verify", log, "--trust", pinned, "--policy", policy)
        assert (found[0], said in found[1]) == (code, True), found
    policy.write_bytes(envelope("7", SECOND.sign(DOCUMENT), DOCUMENT.replace(b"stable", b"broken")))
    assert run("verify", log, "--policy", policy)[0] == 1
    start = {"device_id": "x", "policy": json.loads(envelope("7", SECOND.sign(DOCUMENT), DOCUMENT))}
    policy.write_text(json.dumps(start))
    assert run("verify", log, "--policy", policy)[0] == 0
    # Whoever knows another installation's key alone trusts none of these.
    pinned.write_text(STRANGE.public.pem())
    assert run("verify", log, "--trust", pinned, "--policy", policy)[0] == 1
    policy.write_text("[]")
    assert run("verify", log, "--policy", policy)[0] == 2


def test_a_changed_log_is_found(tmp_path: Path, entries: list[Envelope]) -> None:
    """Left out, put in another order, signed by nobody in use, or not even JSON."""
    forged = entry(
        Head(5, entries[4].sha256), Action.ADD, INSTALLATION, STRANGE.public, NOON, [STRANGE]
    )
    by_retired = entry(
        Head(5, entries[4].sha256), Action.ADD, INSTALLATION, STRANGE.public, NOON, [STRANGE, FIRST]
    )
    by_school = entry(
        Head(3, entries[2].sha256),
        Action.ADD,
        INSTALLATION,
        STRANGE.public,
        NOON,
        [STRANGE, SCHOOL],
    )
    for changed, number in (
        (entries[1:], 1),
        ([entries[0], *entries[2:]], 2),
        ([*entries[:3], entries[4], entries[3]], 4),
        ([*entries, forged], 6),
        ([*entries, by_retired], 6),
        ([*entries[:3], by_school], 4),
    ):
        code, said = run("verify", written(tmp_path / "log", changed))
        assert code == 1
        assert f"entry {number}:" in said
    (tmp_path / "log").write_text("{")
    assert run("verify", tmp_path / "log")[0] == 1


def test_a_root_signs_without_a_network(tmp_path: Path) -> None:
    """What it signs is what was asked; a wrong passphrase, and what is no request, are refused."""
    root, words = tmp_path / "root", tmp_path / "words"
    words.write_text("correct horse battery\n")
    assert run("root-init", root, "--passphrase-file", words)[0] == 0
    assert run("root-init", root, "--passphrase-file", words)[0] == 2
    assert root.stat().st_mode & 0o777 == 0o600
    (public,) = read_pem_bundle((tmp_path / "root.pem").read_text())
    asked = certificate_request(scope_of(None), FIRST.public)
    request, made = tmp_path / "request", tmp_path / "certificate"
    request.write_text(json.dumps(asked.to_json()))
    signing = ("sign", request, "--root", root, "-o", made, "--yes", "--passphrase-file", words)
    assert run(*signing)[0] == 0
    certificate = Envelope.from_json(json.loads(made.read_text()))
    assert certificate.payload == asked.payload
    assert certificate.is_signed_by(public)
    assert FIRST.public.id.encode() in base64.b64decode(asked.to_json()["payload"])
    made.unlink()
    words.write_text("wrong horse")
    assert run(*signing)[0] == 2
    words.write_text("correct horse battery")
    request.write_text(
        json.dumps(entry(Head(), Action.ADD, INSTALLATION, FIRST.public, NOON, [FIRST]).to_json())
    )
    assert run(*signing)[0] == 2
    assert not made.exists()


DASHED = "-IyaDEJ_Zr2PhgS8"
WHOLE = f"--{'Aa_-' * 10}a"


@pytest.mark.parametrize(
    ("command", "words", "key"),
    [
        ("devices", [DASHED, "--json"], DASHED),
        ("pem", ["--url", "https://evergreen.example", WHOLE], WHOLE),
        ("retire", ["--give-up-devices", "--", DASHED], DASHED),
        ("request", [DASHED, "-o", "request.json"], DASHED),
        ("activate", ["PiM7wl6cCISku65c"], "PiM7wl6cCISku65c"),
        ("retire", ["--give-up-devices", "PiM7"], "PiM7"),
    ],
)
def test_a_key_whose_id_begins_with_a_dash_is_an_argument(
    command: str, words: list[str], key: str
) -> None:
    """One key in 64 has such an id, and everybody copies it from a list."""
    every: Any = get_command(app)
    found = every.commands["keys"].commands[command]
    assert found.make_context(command, words).params["key"] == key


def test_what_is_no_option_and_no_id_is_refused() -> None:
    """A slip of the keyboard is not looked for among keys."""
    code, said = run("devices", "--jsno", DASHED)
    assert (code, "No such option: --jsno" in said) == (2, True)
