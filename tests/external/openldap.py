"""A real OpenLDAP with StartTLS and LDAPS, out of Debian's packages: unpacked, without root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy.certificates import now
from deploy.launcher import tls
from tests.support import debian
from tests.support.stack import PATIENCE, free_port, until

_PACKAGES: Final = (
    "slapd",
    "ldap-utils",
    "libldap-2.5-0",
    "libldap-2.6-0",
    "libltdl7",
    "libodbc2",
    "libsasl2-2",
    "libperl5.36",
    "libargon2-1",
    "libwrap0",
)
"""Those that a release of Debian does not have are left out."""
BASE: Final = "dc=school,dc=test"
SERVICE: Final = f"cn=evergreen,{BASE}"
SERVICE_PASSWORD: Final = "the account that searches"
ROOT: Final = f"cn=root,{BASE}"
ROOT_PASSWORD: Final = "secret-root"
PEOPLE: Final = (
    "olive", "adam", "audrey", "dora", "nina", "lock", "expired", "twin1", "twin2", "paren",
)  # fmt: skip
_GROUPS: Final = {
    "eg-owners": ["uid=olive,ou=staff"],
    "eg-auditors": [
        f"uid={one},ou=staff" for one in ("audrey", "dora", "lock", "expired", "paren")
    ],
    "teachers": ["uid=nina,ou=staff"],
    # In a circle with eg-admins.
    "dept-it": ["uid=adam,ou=staff", "cn=teachers,ou=groups", "cn=eg-admins,ou=groups"],
    "eg-admins": ["cn=dept-it,ou=groups"],
}

_CONFIGURATION: Final = """\
include {root}/etc/ldap/schema/core.schema
include {root}/etc/ldap/schema/cosine.schema
include {root}/etc/ldap/schema/inetorgperson.schema
pidfile {directory}/slapd.pid
modulepath {root}/usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload refint
moduleload ppolicy
TLSCACertificateFile {directory}/ca.crt
TLSCertificateFile {directory}/server.crt
TLSCertificateKeyFile {directory}/server.key
sizelimit 500
disallow bind_anon
security simple_bind=128
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
database mdb
suffix "{base}"
rootdn "{service_root}"
rootpw {root_password}
directory {directory}/data
maxsize 104857600
index objectClass,uid,mail,member,entryUUID eq
overlay ppolicy
ppolicy_default "cn=default,ou=policies,{base}"
ppolicy_use_lockout
"""


def group_dn(name: str) -> str:
    return f"cn={name},ou=groups,{BASE}"


def person_dn(name: str) -> str:
    return f"uid={name},ou=staff,{BASE}"


def password_of(name: str) -> str:
    return f"the password of {name}"


@dataclass(frozen=True, slots=True)
class OpenLdap:
    """Where it listens, and how to change what it has."""

    directory: Path
    root: Path
    port: int
    tls_port: int

    @property
    def starttls(self) -> str:
        return f"ldap://localhost:{self.port}"

    @property
    def ldaps(self) -> str:
        return f"ldaps://127.0.0.1:{self.tls_port}"

    @property
    def allowed(self) -> str:
        """What allows to connect to it, as a setting says it: it is on this machine."""
        return f"localhost:{self.port},127.0.0.1/32:{self.tls_port}"

    @property
    def ca_pem(self) -> str:
        return (self.directory / "ca.crt").read_text()

    def change(self, *lines: str) -> None:
        """Changes entries, by LDIF."""
        _run(
            self.root,
            ["ldapmodify", "-x", "-H", self.ldaps, "-D", ROOT, "-w", ROOT_PASSWORD],
            input="\n".join(lines) + "\n",
            LDAPTLS_CACERT=str(self.directory / "ca.crt"),
        )


def _installed() -> list[Path]:
    return [Path(root) for root in ("/", "/usr/local") if Path(root, "usr/sbin/slapd").exists()]


def _unpacked(cache: Path) -> Path:
    """A directory with the programs; the machine's own root where they are installed.

    Skips the test, with the reason, where they cannot be had.
    """
    if (found := _installed()) and shutil.which("ldapmodify"):
        return found[0]
    root = cache / "root"
    if (root / "usr/sbin/slapd").exists():
        return root
    packages = cache / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        with suppress(debian.NotInstalledError):
            debian.download([package], packages)
    for file in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "-x", file, root], check=True, capture_output=True, timeout=120)
    if not (root / "usr/sbin/slapd").exists():
        pytest.skip("slapd could not be downloaded")
    return root


def _run(root: Path, command: list[str], **more: str) -> None:
    given = more.pop("input", "")
    program = next(
        path for place in ("usr/bin", "usr/sbin") if (path := root / place / command[0]).exists()
    )
    done = subprocess.run(
        [program, *command[1:]],
        input=given,
        env=_environment(root) | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def _environment(root: Path) -> dict[str, str]:
    libraries = sorted({str(path.parent) for path in (root / "usr/lib").glob("*/*.so.*")})
    environment = dict(os.environ)
    if root != Path("/"):
        environment["LD_LIBRARY_PATH"] = ":".join([*libraries, f"{root}/usr/lib/ldap"])
    return environment


@contextmanager
def running(cache: Path, directory: Path, tls_port: int = 0) -> Iterator[OpenLdap]:
    """Runs OpenLDAP with a school's people and groups.

    Args:
        cache: for the programs, which are unpacked once.
        directory: is made for its files.
        tls_port: where it listens for LDAPS; 0 for a port that nobody uses.
    """
    root = _unpacked(cache)
    (directory / "data").mkdir(parents=True)
    tls.ensure(directory, ["localhost", "127.0.0.1"], now())
    place = "" if root == Path("/") else str(root)
    (directory / "slapd.conf").write_text(
        _CONFIGURATION.format(
            root=place,
            directory=directory,
            base=BASE,
            service_root=ROOT,
            root_password=ROOT_PASSWORD,
        )
    )
    (directory / "school.ldif").write_text(_ldif())
    configuration = str(directory / "slapd.conf")
    _run(root, ["slapadd", "-f", configuration, "-l", str(directory / "school.ldif")])
    found = OpenLdap(directory, root, free_port(), tls_port or free_port())
    with (directory / "slapd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                root / "usr/sbin/slapd",
                "-f",
                configuration,
                "-h",
                f"ldap://127.0.0.1:{found.port} ldaps://127.0.0.1:{found.tls_port}",
                "-d",
                "0",
            ],
            env=_environment(root),
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: _answers(found.tls_port), PATIENCE, "OpenLDAP does not start")
        yield found
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ldif() -> str:
    entries = [
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: school\no: School",
        *(
            f"dn: ou={name},{BASE}\nobjectClass: organizationalUnit\nou: {name}"
            for name in ("staff", "groups", "policies")
        ),
        f"dn: cn=default,ou=policies,{BASE}\nobjectClass: pwdPolicy\nobjectClass: device\n"
        "cn: default\npwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 3\n"
        "pwdLockoutDuration: 600\npwdFailureCountInterval: 600",
        f"dn: cn=expiring,ou=policies,{BASE}\nobjectClass: pwdPolicy\nobjectClass: device\n"
        "cn: expiring\npwdAttribute: userPassword\npwdMaxAge: 1\npwdGraceAuthNLimit: 0",
        f"dn: {SERVICE}\nobjectClass: applicationProcess\nobjectClass: simpleSecurityObject\n"
        f"cn: evergreen\nuserPassword: {SERVICE_PASSWORD}",
        *(_person(name) for name in PEOPLE),
        *(
            f"dn: {group_dn(name)}\nobjectClass: groupOfNames\ncn: {name}\n"
            + "\n".join(f"member: {member},{BASE}" for member in members)
            for name, members in _GROUPS.items()
        ),
    ]
    return "\n\n".join(entries) + "\n"


def _person(name: str) -> str:
    mail = "twin" if name.startswith("twin") else name
    common = "Par*en\\(x)" if name == "paren" else name
    more = (
        f"\npwdPolicySubentry: cn=expiring,ou=policies,{BASE}\npwdChangedTime: 20200101000000Z"
        if name == "expired"
        else ""
    )
    return (
        f"dn: {person_dn(name)}\nobjectClass: inetOrgPerson\nuid: {name}\ncn: {common}\nsn: Test\n"
        f"mail: {mail}@school.test\nuserPassword: {password_of(name)}{more}"
    )
