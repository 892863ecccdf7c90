"""The installation's files: who may read the secrets, the master key, the local CA."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cli.backup.keys import MissingKeyError, SealedKeys
from cli.doctor.finding import Check, Finding, judged, skipped, warning
from deploy.certificates import Authority
from servicekit.ids import now
from servicekit.security.certificates import first_end

PERMISSIONS: Final = "files.permissions"
MASTER_KEY: Final = "keys.master"
AUTHORITY: Final = "certificates.authority"
GIVEN: Final = "certificates.given"

_CA_SOON: Final = timedelta(days=365)
_MOST_TOLD: Final = 5


def permissions(paths: Iterable[Path]) -> Check:
    """Whether others can read what is secret."""
    found = [path for path in paths if path.exists()]
    if not found:
        return skipped(PERMISSIONS, "no file of secrets is here")
    wide = [path for path in found if _is_wide(path)]
    if not wide:
        return judged(PERMISSIONS, [], f"{len(found)} files are for their owner alone")
    told = ", ".join(map(str, wide[:_MOST_TOLD]))
    more = f" and {len(wide) - _MOST_TOLD} more" if len(wide) > _MOST_TOLD else ""
    finding = Finding(
        "SECRETS_READABLE",
        f"other users of this machine can read {told}{more}",
        "Run: chmod go= " + " ".join(map(str, wide[:_MOST_TOLD])) + ". Where somebody may have"
        " read them, change them too (docs/certificates.md).",
    )
    return judged(PERMISSIONS, [finding])


def _is_wide(path: Path) -> bool:
    about = path.stat()
    # In Kubernetes root owns the files, and the pod's group reads them.
    is_mounted = about.st_uid == 0 and os.getuid() != 0
    return bool(stat.S_IMODE(about.st_mode) & (0o007 if is_mounted else 0o077))


def master_key(path: Path | None) -> Check:
    """Whether there is a master key, and it is one."""
    if path is None:
        return skipped(MASTER_KEY, "no directory of secrets is known; set EVERGREEN_ROLE_SECRETS")
    back = (
        "Put it back from a backup (`evergreen backup restore`), before anything is started: with"
        " another one the keys that sign tokens and policies cannot be opened."
    )
    try:
        SealedKeys(path.read_bytes() or None)
    except FileNotFoundError:
        return judged(MASTER_KEY, [Finding("MASTER_KEY_MISSING", f"{path} is missing", back)])
    except OSError as error:
        return judged(MASTER_KEY, [Finding("MASTER_KEY_MISSING", f"{path}: {error}", back)])
    except MissingKeyError as error:
        what = f"{path} is empty" if not path.stat().st_size else f"{path}: {error}"
        return judged(MASTER_KEY, [Finding("MASTER_KEY_INVALID", what, back)])
    return judged(MASTER_KEY, [], str(path))


def authorities(directories: Iterable[Path], clock: Callable[[], datetime] = now) -> Check:
    """Whether the local CAs can go on signing."""
    there = list(directories)
    if not there:
        return skipped(AUTHORITY, "no local CA is kept here")
    found = [finding for directory in there for finding in authority(directory, clock)]
    return judged(AUTHORITY, found, ", ".join(str(directory / "ca.crt") for directory in there))


def given(source: Path | None, clock: Callable[[], datetime] = now) -> list[Check]:
    """Whether a certificate of another CA can be taken over, where there is one."""
    if source is None:
        return []
    # Comes with what runs without containers.
    from deploy.launcher import tls  # noqa: PLC0415

    try:
        tls.read_given(source, clock())
    except tls.GivenCertificateError as error:
        finding = Finding(
            "CERTIFICATE_NOT_TAKEN",
            f"the certificate in EVERGREEN_TLS_DIRECTORY cannot be taken over: {error}",
            f"Put {tls.CHAIN} and {tls.KEY} there that belong together, readable for the user that"
            " Evergreen runs as. Until then the one of before is served.",
        )
        return [judged(GIVEN, [finding])]
    return [judged(GIVEN, [], str(source))]


def authority(directory: Path, clock: Callable[[], datetime] = now) -> Iterator[Finding]:
    """Whether a local CA has its key, and for how long it is good."""
    files = Authority(directory / "ca.crt", directory / "ca.key")
    put_back = (
        f"Put {files.key_file} back from a backup (it is in the archive). Without it no certificate"
        " can be renewed. If it is lost, replace the CA in time: `evergreen certificates rollover`"
        " (docs/certificates.md)."
    )
    try:
        first_end(files.certificate_file)
    except (OSError, ValueError) as error:
        yield Finding(
            "CA_MISSING", f"{files.certificate_file} cannot be used: {_said(error)}", put_back
        )
        return
    try:
        ends = files.signs_until()
    except (OSError, ValueError, TypeError) as error:
        yield Finding("CA_KEY_MISSING", f"{files.key_file}: {_said(error)}", put_back)
        return
    if ends is None:
        yield Finding(
            "CA_KEY_DOES_NOT_FIT", f"{files.key_file} is not the key of the CA beside it", put_back
        )
        return
    left = ends - clock()
    if left < _CA_SOON:
        yield warning(
            "CA_EXPIRES_SOON",
            f"the CA {files.certificate_file} ends in {max(left.days, 0)} days, and all that it"
            " signed with it",
            "Replace it in time, with `evergreen certificates rollover` (docs/certificates.md).",
        )


def _said(error: Exception) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else str(error)
