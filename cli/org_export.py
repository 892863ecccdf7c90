"""The file in which an organisation leaves: a ZIP archive with a manifest as its last file.

Everything is written as it comes, so that memory stays small. An archive that was not finished has
no directory, which every ZIP program says, and no manifest; the file has its name only when it is
complete. The audit log in it is an export that `evergreen audit verify` takes without a connection.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from auditlog.chain import Checkpoint, CheckpointError
from cli.client import Api
from cli.errors import CliError
from cli.files import written
from servicekit.security.digests import Sha256

FORMAT: Final = "evergreen organisation export v1"
MANIFEST: Final = "manifest.json"
_ALL: Final = sys.maxsize
_PIECE: Final = 1 << 20
_LISTS: Final = (
    ("users.jsonl", "/api/users", "users"),
    ("registrations.jsonl", "/api/registrations", "registrations"),
    ("enrollment-tokens.jsonl", "/api/enrollment-tokens", "enrollmentTokens"),
    ("event-credentials.jsonl", "/api/event-credentials", "credentials"),
)


class _Archive:
    """Files of a ZIP archive, with the digest of each."""

    def __init__(self, archive: zipfile.ZipFile, at: datetime, say: Callable[[str], None]) -> None:
        self._archive = archive
        self._at = at
        self._say = say
        self.files: list[dict[str, Any]] = []

    def add(self, name: str, parts: Iterable[bytes]) -> None:
        """Adds a file as its parts come."""
        digest = Sha256()
        size = 0
        entry = zipfile.ZipInfo(name, self._at.timetuple()[:6])
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o600 << 16
        with self._archive.open(entry, "w", force_zip64=True) as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
        self.files.append({"name": name, "bytes": size, "sha256": digest.hexdigest()})
        self._say(f"{name}: {size:,} bytes")


def write_export(api: Api, org: dict[str, Any], path: Path, say: Callable[[str], None]) -> int:
    """Writes all of an organisation into a file; answers how many files are in it.

    Args:
        api: as a user who sees the organisation.
        org: the organisation, as the API answers it.
        path: of the file, which appears when it is complete.
        say: takes a line of progress.

    Raises:
        CliError: something could not be read or written; the file is not there then.
    """
    org_id = org["id"]
    begun = datetime.now(UTC)
    with written(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        files = _Archive(archive, begun, say)
        files.add("organisation.json", _json(api.get(f"/api/tenants/{org_id}")))
        for name, path_of_list, items in _LISTS:
            more = {"showDeleted": "true"} if items == "registrations" else {}
            files.add(name, _lines(api.pages(path_of_list, items, _ALL, orgId=org_id, **more)))
        files.add("devices.json", api.stream("/api/devices/export", orgId=org_id, format="json"))
        for group in api.pages("/api/device-groups", "deviceGroups", _ALL, orgId=org_id):
            _add_group(api, files, group)
        for policy in api.pages("/api/policies", "policies", _ALL, orgId=org_id):
            _add_policy(api, files, policy["id"])
        if org["kind"] == "org":
            files.add("event-retention.json", _json(api.get("/api/events/retention", orgId=org_id)))
            gate = api.get("/api/attestation-gate", orgId=org_id)
            files.add("attestation-gate.json", _json(gate))
        files.add("events.json", api.stream("/api/events/export", orgId=org_id, format="json"))
        _add_quarantined(api, files, org_id)
        _add_audit(api, files, org_id)
        manifest = {
            "format": FORMAT,
            "organisation": {"id": org_id, "code": org["code"], "name": org["name"]},
            "exportedAt": begun.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "files": files.files,
        }
        archive.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2))
    return len(files.files)


def _add_group(api: Api, files: _Archive, group: dict[str, Any]) -> None:
    name = f"device-groups/{group['id']}"
    files.add(f"{name}/group.json", _json(group))
    members = api.pages(f"/api/device-groups/{group['id']}/members", "members", _ALL)
    files.add(f"{name}/members.jsonl", _lines(members))


def _add_policy(api: Api, files: _Archive, policy_id: str) -> None:
    files.add(f"policies/{policy_id}/policy.json", _json(api.get(f"/api/policies/{policy_id}")))
    files.add(
        f"policies/{policy_id}/versions.jsonl",
        _lines(api.pages(f"/api/policies/{policy_id}/versions", "versions", _ALL)),
    )


def _add_quarantined(api: Api, files: _Archive, org_id: str) -> None:
    ids: list[str] = []

    def listed() -> Iterator[Any]:
        for event in api.pages("/api/events/quarantine", "quarantinedEvents", _ALL, orgId=org_id):
            ids.append(event["id"])
            yield event

    files.add("quarantined-events.jsonl", _lines(listed()))
    for event_id in ids:
        files.add(
            f"quarantined-events/{event_id}.txt", api.stream(f"/api/events/quarantine/{event_id}")
        )


def _add_audit(api: Api, files: _Archive, org_id: str) -> None:
    """The log with its proof. The checkpoint is older, so that the log goes at least as far."""
    try:
        checkpoint = Checkpoint.read(json.dumps(api.get("/api/audit/checkpoint"))).write()
    except CheckpointError as broken:
        raise CliError(f"the installation answered no checkpoint: {broken}") from broken
    files.add("audit/checkpoint.txt", [checkpoint.encode()])
    files.add("audit/keys.pem", [api.get_text("/api/v1/audit-keys.pem").encode()])
    files.add("audit/log.jsonl", api.stream("/api/audit/export", orgId=org_id, format="jsonl"))


def _json(value: Any) -> Iterator[bytes]:
    yield json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def _lines(items: Iterable[Any]) -> Iterator[bytes]:
    for item in items:
        yield json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def check_export(path: Path) -> dict[str, Any]:
    """Checks that an export is complete and as its manifest says; answers the manifest.

    Raises:
        CliError: it is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if MANIFEST not in names:
                raise CliError(f"{path} has no manifest: it is not complete")
            manifest = json.loads(archive.read(MANIFEST))
            if manifest["format"] != FORMAT:
                raise CliError(f"{path} has another format: {manifest['format']}")
            listed = [file["name"] for file in manifest["files"]]
            if sorted([*listed, MANIFEST]) != sorted(names):
                raise CliError(f"{path} does not have the files that its manifest lists")
            for file in manifest["files"]:
                _check(archive, path, file)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as broken:
        raise CliError(f"{path} is no complete export: {broken}") from broken
    found: dict[str, Any] = manifest
    return found


def _check(archive: zipfile.ZipFile, path: Path, listed: dict[str, Any]) -> None:
    digest = Sha256()
    with archive.open(listed["name"]) as file:
        while part := file.read(_PIECE):
            digest.update(part)
    if digest.hexdigest() != listed["sha256"]:
        raise CliError(f"{path}: {listed['name']} is not what its digest says")
