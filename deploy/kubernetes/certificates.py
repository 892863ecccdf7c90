"""Renews the certificates of a release of the chart, which are in Secrets.

The CAs' keys are in a Secret of their own, which no other pod mounts. Each Secret is replaced at
once, the CAs' first, so that a run that is killed leaves what the next one goes on from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from deploy.certificates import INSIDE, SERVER, Authority, Kind, first_end_of, issued_by, now
from deploy.kubernetes.api import Api, ConflictError, KubernetesError, Object, as_data, data_of
from deploy.private_files import write_private

Step = Literal["kept", "begin", "switch", "end"]
"""What is to become of a CA (`deploy.certificates.Authority`)."""

_ATTEMPTS: Final = 5
_NAMES: Final = {"gateway": "Evergreen CA", "inside": "Evergreen inside CA"}
_CA_FILES: Final = {"ca.crt": "{}.crt", "ca.key": "{}.key", "next.key": "{}-next.key"}
"""A CA's files → their keys in the Secret of the CAs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a release's certificates should be."""

    authorities: str
    """The Secret with the CAs."""
    gateway: str = ""
    """The Secret with the gateway's certificate, if it is to be renewed."""
    gateway_hosts: Sequence[str] = ()
    gateway_kind: Kind = SERVER
    gateway_ca: Step = "kept"
    inside: str = ""
    """The Secret with the certificates inside the walls, likewise."""
    inside_hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Party → its names."""
    inside_kind: Kind = INSIDE
    inside_ca: Step = "kept"


@dataclass(frozen=True, slots=True)
class _Secret:
    """A Secret as it was read."""

    files: Mapping[str, str]
    """Key → text."""
    whole: Object = field(repr=False)
    """The object, with the version that a replacement has to name."""


def renew(api: Api, wanted: Wanted) -> list[str]:
    """Makes what is due, and takes a CA's next step; answers what was done, a line each.

    Raises:
        KubernetesError: a Secret is missing, or the cluster does not answer, or refuses.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _attempt(api, wanted)
        except ConflictError:
            continue  # another run, or an upgrade: see what it has left to do
    return _attempt(api, wanted)


def _attempt(api: Api, wanted: Wanted) -> list[str]:
    done: list[str] = []
    authorities = _found(api, wanted.authorities)
    kept = dict(authorities.files)
    replaced: list[tuple[_Secret, dict[str, str]]] = []
    with tempfile.TemporaryDirectory() as name:
        for which, secret_name, step in (
            ("gateway", wanted.gateway, wanted.gateway_ca),
            ("inside", wanted.inside, wanted.inside_ca),
        ):
            if not secret_name:
                continue
            secret = _found(api, secret_name)
            directory = Path(name) / which
            directory.mkdir(mode=0o700)
            parties = {"tls": wanted.gateway_hosts} if which == "gateway" else wanted.inside_hosts
            kind = wanted.gateway_kind if which == "gateway" else wanted.inside_kind
            authority = _authority(directory, which, kept, secret, next(iter(parties)))
            done += _step(authority, which, step)
            if not authority.key_file.exists():
                done.append(
                    f"{which}: the key of the CA in use is not known. The next CA is in `ca.crt`"
                    f" of {secret_name}: give it to each device that trusts the old CA before"
                    f" {first_end_of(secret.files.get(f'{next(iter(parties))}.crt', ''))}"
                )
            files = dict(secret.files)
            for party, hosts in parties.items():
                if _renewed(authority, directory, party, hosts, kind, files):
                    done.append(f"{which}: certificate of {party} renewed")
            files["ca.crt"] = authority.certificate_file.read_text(encoding="ascii")
            kept = {
                key: text
                for key, text in kept.items()
                if key not in {form.format(which) for form in _CA_FILES.values()}
            } | {
                form.format(which): (directory / file).read_text(encoding="ascii")
                for file, form in _CA_FILES.items()
                if (directory / file).exists()
            }
            if files != secret.files:
                replaced.append((secret, files))
    if kept != authorities.files:
        _replace(api, authorities, kept)
    for secret, files in replaced:
        _replace(api, secret, files)
    return done


def _found(api: Api, name: str) -> _Secret:
    found = api.get("secrets", name)
    if found is None:
        raise KubernetesError(f"the Secret {name} is missing; `helm upgrade` makes it")
    return _Secret({key: value.decode() for key, value in data_of(found).items()}, found)


def _replace(api: Api, secret: _Secret, files: Mapping[str, str]) -> None:
    data = as_data({key: text.encode() for key, text in files.items()})
    api.replace("secrets", secret.whole | {"data": data})


def _authority(
    directory: Path, which: str, kept: Mapping[str, str], secret: _Secret, party: str
) -> Authority:
    """The CA as files.

    Where the certificate in use is of another CA (a restored one, or of a release of the chart
    that kept no key), that one stays, and ours is the next.
    """
    for file, form in _CA_FILES.items():
        if text := kept.get(form.format(which)):
            write_private(directory / file, text)
    found = Authority(directory / "ca.crt", directory / "ca.key")
    trusted = kept.get(f"{which}.crt", "")
    used, theirs = secret.files.get(f"{party}.crt", ""), secret.files.get("ca.crt", "")
    if not issued_by(used, trusted) and issued_by(used, theirs):
        write_private(found.certificate_file, theirs + trusted)
        if found.key_file.exists():
            found.key_file.replace(found.next_key_file)
    if found.certificate_file.exists() and not found.key_file.exists():
        found.begin(_NAMES[which])
    return Authority.ensure_in(directory, _NAMES[which])


def _step(authority: Authority, which: str, step: Step) -> list[str]:
    if step == "begin" and authority.begin(_NAMES[which]):
        return [f"{which}: the next CA is made, and trusted beside the old one"]
    if step == "switch" and authority.switch():
        return [f"{which}: the next CA signs from now on; the old one is still trusted"]
    if step == "end" and authority.end():
        return [f"{which}: the old CA is not trusted any more"]
    return []


def _renewed(
    authority: Authority,
    directory: Path,
    party: str,
    hosts: Sequence[str],
    kind: Kind,
    files: dict[str, str],
) -> bool:
    """Renews one certificate of a Secret's files, if it is due."""
    paths = {f"{party}.{end}": directory / f"{party}.{end}" for end in ("crt", "key")}
    for key, path in paths.items():
        if text := files.get(key):
            write_private(path, text)
    certificate, private = paths.values()
    if not authority.ensure_files(certificate, private, hosts, kind, now()):
        return False
    files |= {key: path.read_text(encoding="ascii") for key, path in paths.items()}
    return True
