"""Which algorithms may be used (`EVERGREEN_FIPS`), and which new values are made with
(`EVERGREEN_SUITES`).

Both are read from the environment and not from the settings: they have to be known before the first
import of a library that has cryptography, in every process and command.

| EVERGREEN_FIPS | EVERGREEN_SUITES | reads | writes |
| --- | --- | --- | --- |
| off | standard | everything | what is fastest |
| off | approved | everything | what FIPS mode reads, too |
| required | any | what is approved | what is approved |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NoReturn

FIPS: Final = "EVERGREEN_FIPS"
SUITES: Final = "EVERGREEN_SUITES"
SHA256: Final = "EVERGREEN_FIPS_SHA256"
"""Of the module's file, where an operator wants no other one. `fipsinstall` takes any file that
passes its tests, and from then on no change of it."""
OFF: Final = "off"
REQUIRED: Final = "required"
STANDARD: Final = "standard"
APPROVED: Final = "approved"

REFUSED: Final = 78
"""The exit status of a process that may not run as it is set up (`EX_CONFIG` of sysexits.h): to
start it again does not help."""

FORBIDDEN: Final = frozenset(
    {
        "Crypto",
        "Cryptodome",
        "_argon2_cffi_bindings",
        "argon2",
        "bcrypt",
        "blake3",
        "cli.backup.age",
        "ecdsa",
        "ldap3.utils.ntlm",
        "libnacl",
        "nacl",
        "nkeys",
        "oscrypto",
        "passlib",
        "pyrage",
        "pysodium",
        "rsa",
        "scrypt",
        "servicekit.security.libsodium",
    }
)
"""Libraries with cryptography of their own, which no module of OpenSSL does."""

_required = False


class FipsError(Exception):
    """FIPS mode cannot be had here: why, and what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason
        self.advice = advice


class ForbiddenImportError(ImportError):
    """A library with cryptography of its own is imported in FIPS mode. What can do without it, as
    `cryptography` can without bcrypt, goes on."""


class _NoForbidden:
    """Finds none of the forbidden modules: it refuses them."""

    @staticmethod
    def find_spec(name: str, _path: Sequence[str] | None = None, _target: object = None) -> None:
        """Answers nothing for all other modules, so that they are found as ever.

        Raises:
            ForbiddenImportError: it is one of them.
        """
        if is_forbidden(name):
            raise ForbiddenImportError(
                f"{name} has cryptography of its own and may not be imported with {FIPS}=required",
                name=name,
            )


def is_required() -> bool:
    """Whether this process uses approved algorithms alone."""
    return _required


def writes_approved() -> bool:
    """Whether new values are made with approved algorithms."""
    return _required or os.environ.get(SUITES) == APPROVED


def is_forbidden(name: str) -> bool:
    """Whether a module may not be imported in FIPS mode."""
    return name in FORBIDDEN or name.partition(".")[0] in FORBIDDEN


def settings() -> tuple[str, str]:
    """Both settings.

    Raises:
        FipsError: one is neither of its words.
    """
    return _one_of(FIPS, (OFF, REQUIRED)), _one_of(SUITES, (STANDARD, APPROVED))


def require() -> None:
    """From here on, this process uses approved algorithms alone; there is no way back.

    Raises:
        FipsError: a library with cryptography of its own is there already.
    """
    global _required  # noqa: PLW0603 - a process is in FIPS mode or not, from its first line on
    loaded = sorted(name for name in sys.modules if is_forbidden(name))
    if loaded:
        raise FipsError(
            f"{loaded[0]} is imported, which has cryptography of its own",
            "start the product by its own commands",
        )
    # `cryptography` would load OpenSSL's old algorithms, and warn where there are none.
    os.environ["CRYPTOGRAPHY_OPENSSL_NO_LEGACY"] = "1"
    sys.meta_path.insert(0, _NoForbidden)
    sys.excepthook = _excepthook
    _required = True


def refuse(error: Exception) -> NoReturn:
    """Ends the process with one line that says why."""
    sys.stderr.write(f"FIPS mode refused: {error}\n")
    sys.stderr.flush()
    raise SystemExit(REFUSED)


def _one_of(name: str, words: tuple[str, str]) -> str:
    found = os.environ.get(name, words[0])
    if found not in words:
        raise FipsError(
            f"{name} is {found[:40]!r}", f"set it to {words[0]} or {words[1]}, or leave it out"
        )
    return found


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if isinstance(error, FipsError | ForbiddenImportError):
        sys.stderr.write(f"FIPS mode refused: {error}\n")
        sys.stderr.flush()
        os._exit(REFUSED)
    sys.__excepthook__(kind, error, trace)
