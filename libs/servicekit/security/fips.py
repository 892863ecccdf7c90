"""What FIPS mode needs of OpenSSL, and whether it is there.

A refusal alone proves nothing: `hashlib` answers with code of its own where OpenSSL refuses, and
`cryptography` refuses by itself what it believes that a module refuses. So libcrypto itself is
asked, by the function calls of its documentation: which module an algorithm comes from when nothing
else is said.
"""

from __future__ import annotations

import ctypes
import hmac
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from servicekit.security import mode
from servicekit.security.mode import FipsError

_MODULE: Final = b"fips"
_UTF8_PTR: Final = 6
"""`OSSL_PARAM_UTF8_PTR` of openssl/core.h."""
_INTEGER: Final = 1

_INSTALL: Final = (
    "install OpenSSL's FIPS module, run `openssl fipsinstall`, and activate it with"
    " default_properties = fips=yes (docs/fips.md)"
)
_NEEDED: Final = (
    ("EVP_MD", "SHA2-256"),
    ("EVP_MD", "SHA2-512"),
    ("EVP_MAC", "HMAC"),
    ("EVP_CIPHER", "AES-256-GCM"),
    ("EVP_KDF", "HKDF"),
    ("EVP_KDF", "PBKDF2"),
    ("EVP_SIGNATURE", "ECDSA"),
    ("EVP_SIGNATURE", "ED25519"),
    ("EVP_KEYEXCH", "ECDH"),
    ("EVP_RAND", "CTR-DRBG"),
)
"""What the product uses, each of which the module has to have."""
_REFUSED: Final = (
    ("EVP_MD", "MD5"),
    ("EVP_MD", "BLAKE2B-512"),
    ("EVP_CIPHER", "ChaCha20-Poly1305"),
    ("EVP_KDF", "SCRYPT"),
    ("EVP_KEYEXCH", "X25519"),
)
"""What the default provider of OpenSSL has, and no FIPS module: one that is found comes from
elsewhere. X25519 alone is in the modules of OpenSSL 3.0."""
_IN_SOME: Final = frozenset({"X25519"})


class _Param(ctypes.Structure):
    """`OSSL_PARAM`."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


@dataclass(frozen=True, slots=True)
class Module:
    """The module that does the cryptography."""

    name: str
    """As it calls itself."""
    version: str
    build: str
    file: str
    sha256: str
    """Of the file, as 64 hexadecimal digits, computed by the module."""
    openssl: str
    """The OpenSSL that loads it."""


def begin() -> None:
    """Checks the two settings and, where FIPS mode is required, everything that it needs.

    Ends the process with one line and `mode.REFUSED` where something is wrong.
    """
    try:
        wanted, _ = mode.settings()
        if wanted == mode.REQUIRED:
            mode.require()
            require()
    except FipsError as error:
        mode.refuse(error)
    except Exception as error:
        mode.refuse(
            FipsError(
                f"it cannot be checked: {type(error).__name__} {error}", "set EVERGREEN_FIPS=off"
            )
        )


def module() -> Module | None:
    """The module of this process; `None` where FIPS mode is off."""
    return require() if mode.is_required() else None


def named() -> str:
    """The module in one line; empty where FIPS mode is off."""
    if (known := module()) is None:
        return ""
    return f"FIPS mode, {known.name} {known.version}, SHA-256 {known.sha256}"


def described() -> dict[str, Any]:
    """Both settings and the module, as the API and the command line show them."""
    found: dict[str, Any] = {
        "fips": mode.REQUIRED if mode.is_required() else mode.OFF,
        "suites": mode.APPROVED if mode.writes_approved() else mode.STANDARD,
    }
    if (known := module()) is not None:
        found["module"] = asdict(known)
    return found


@cache
def require() -> Module:
    """Checks that all cryptography of this process comes from one FIPS module.

    Raises:
        FipsError: it does not, or nobody can tell.
    """
    if not sys.platform.startswith("linux"):
        raise FipsError("FIPS mode needs Linux", "run it there, or set EVERGREEN_FIPS=off")
    libcrypto = _one_libcrypto()
    _module_is_active(libcrypto)
    _come_from_the_module(libcrypto)
    _known_answers()
    found = _describe(libcrypto)
    _is_the_wanted(found, os.environ.get(mode.SHA256, ""))
    return found


def _is_the_wanted(found: Module, sha256: str) -> None:
    """Compares the digest of the module's file with the one that the operator named, if any.

    Raises:
        FipsError: they differ.
    """
    if sha256 and sha256.lower() != found.sha256:
        raise FipsError(
            f"{found.file} has the SHA-256 {found.sha256}, and {mode.SHA256} is {sha256[:64]!r}",
            "install the module that is meant, or correct the setting",
        )


def _come_from_the_module(libcrypto: ctypes.CDLL) -> None:
    """Asks for each algorithm where it comes from.

    Raises:
        FipsError: one that is needed is not the module's, or one comes from elsewhere.
    """
    for kind, name in _NEEDED:
        found = _source(libcrypto, kind, name)
        if found != _MODULE:
            raise FipsError(
                f"{name} comes from {found.decode() if found else 'nowhere'} and not from the FIPS"
                " module",
                _needs(name),
            )
    for kind, name in _REFUSED:
        found = _source(libcrypto, kind, name)
        if found is not None and not (found == _MODULE and name in _IN_SOME):
            raise FipsError(
                f"{name} is not refused, it comes from {found.decode()}",
                "set default_properties = fips=yes in OpenSSL's configuration",
            )


def require_tls_of(extension: Any, what: str) -> None:
    """Checks that a library's TLS is that of the system's OpenSSL, where FIPS mode is on.

    Args:
        extension: the library's compiled module.
        what: its name, for the error.

    Raises:
        FipsError: it has TLS of its own.
    """
    if mode.is_required() and _libcrypto_of(extension.__file__) is None:
        raise FipsError(
            f"{what} has TLS of its own (BoringSSL)",
            "build it against the system's OpenSSL (Dockerfile.fips), or keep the services on one"
            " machine, where they meet on sockets without TLS",
        )


def _needs(name: str) -> str:
    if name == "ED25519":
        return (
            "use a module with EdDSA, such as that of OpenSSL 3.5: released agents verify policies"
            " with Ed25519 alone"
        )
    return _INSTALL


def _one_libcrypto() -> ctypes.CDLL:
    """The libcrypto of Python and of `cryptography`, which has to be one."""
    import _hashlib  # noqa: PLC0415 - the module is asked before anything else is loaded
    import _ssl  # noqa: PLC0415

    from cryptography.hazmat.bindings import _rust  # noqa: PLC0415

    found = {}
    for module_ in (_hashlib, _ssl, _rust):
        name = "cryptography" if module_ is _rust else "Python"
        where = _libcrypto_of(getattr(module_, "__file__", None))
        if where is None:
            raise FipsError(
                f"{name} has an OpenSSL of its own inside",
                f"use a {name} that is built against the system's OpenSSL",
            )
        found[name] = where
    if len(set(found.values())) != 1:
        raise FipsError(
            "Python and cryptography use two OpenSSLs",
            "use a cryptography that is built against the OpenSSL of Python",
        )
    files = _mapped("libcrypto")
    if len(files) != 1:
        raise FipsError(
            f"{len(files)} libcryptos are in one process: {', '.join(sorted(files)) or 'none'}",
            "remove all but the system's",
        )
    return ctypes.CDLL(files.pop())


def _libcrypto_of(file: str | None) -> int | None:
    """Where the libcrypto lies that a compiled module is linked with; `None` if it has its own."""
    try:
        # Looked up in the file and in what it is linked with, and nowhere else.
        function = ctypes.CDLL(file).OpenSSL_version_num
    except (OSError, AttributeError):
        return None
    address = ctypes.cast(function, ctypes.c_void_p).value
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(None, 5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if address is not None and start <= address < end:
            return address if "libcrypto" in Path(fields[5]).name else None
    return None


def _mapped(name: str) -> set[str]:
    """The files in this process whose names have a part."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and name in Path(fields[5]).name:
            found.add(fields[5])
    return found


def _module_is_active(libcrypto: ctypes.CDLL) -> None:
    if not libcrypto.OSSL_PROVIDER_available(None, _MODULE):
        raise FipsError("OpenSSL has no active FIPS module", _INSTALL)
    if libcrypto.EVP_default_properties_is_fips_enabled(None) != 1:
        raise FipsError(
            "the FIPS module is there and not the default",
            "set default_properties = fips=yes in OpenSSL's configuration",
        )
    import _hashlib  # noqa: PLC0415 - as above

    from cryptography.hazmat.bindings._rust import openssl  # noqa: PLC0415

    for who, is_on in (
        ("Python", _hashlib.get_fips_mode()),
        ("cryptography", openssl.is_fips_enabled()),
    ):
        if not is_on:
            raise FipsError(f"{who} does not see the FIPS module", _INSTALL)


def _source(libcrypto: ctypes.CDLL, kind: str, name: str) -> bytes | None:
    """The provider that an algorithm comes from when nothing else is asked for."""
    fetch = getattr(libcrypto, f"{kind}_fetch")
    fetch.restype = ctypes.c_void_p
    fetch.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    algorithm = fetch(None, name.encode(), None)
    libcrypto.ERR_clear_error()
    if not algorithm:
        return None
    provider_of = getattr(libcrypto, f"{kind}_get0_provider")
    provider_of.restype = ctypes.c_void_p
    provider_of.argtypes = (ctypes.c_void_p,)
    libcrypto.OSSL_PROVIDER_get0_name.restype = ctypes.c_char_p
    libcrypto.OSSL_PROVIDER_get0_name.argtypes = (ctypes.c_void_p,)
    found: bytes = libcrypto.OSSL_PROVIDER_get0_name(provider_of(algorithm))
    free = getattr(libcrypto, f"{kind}_free")
    free.argtypes = (ctypes.c_void_p,)
    free(algorithm)
    return found


def _describe(libcrypto: ctypes.CDLL) -> Module:
    """The module as it describes itself, and its file."""
    files = _mapped("fips")
    files = {file for file in files if Path(file).suffix == ".so"}
    if len(files) != 1:
        raise FipsError(
            f"{len(files)} FIPS modules are in one process",
            "activate one in OpenSSL's configuration",
        )
    file = files.pop()
    libcrypto.OSSL_PROVIDER_load.restype = ctypes.c_void_p
    provider = libcrypto.OSSL_PROVIDER_load(None, _MODULE)
    texts = {name: ctypes.c_char_p() for name in (b"name", b"version", b"buildinfo")}
    runs = ctypes.c_int()
    params = (_Param * (len(texts) + 2))(
        *(
            _Param(name, _UTF8_PTR, ctypes.cast(ctypes.pointer(text), ctypes.c_void_p), 0, 0)
            for name, text in texts.items()
        ),
        _Param(
            b"status",
            _INTEGER,
            ctypes.cast(ctypes.pointer(runs), ctypes.c_void_p),
            ctypes.sizeof(runs),
            0,
        ),
        _Param(),
    )
    libcrypto.OSSL_PROVIDER_get_params.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    if not libcrypto.OSSL_PROVIDER_get_params(provider, ctypes.byref(params)) or runs.value != 1:
        raise FipsError("the FIPS module is in its error state", "install it anew")
    from cryptography.hazmat.bindings._rust import openssl  # noqa: PLC0415 - as above

    from servicekit.security.digests import Sha256  # noqa: PLC0415

    digest = Sha256()
    with Path(file).open("rb") as bytes_:
        while part := bytes_.read(1 << 20):
            digest.update(part)
    name, version, build = (
        (text.value or b"").decode("utf-8", "replace") for text in texts.values()
    )
    openssl_version = openssl.openssl_version_text()
    return Module(name, version, build, file, digest.hexdigest(), openssl_version)


def _known_answers() -> None:
    """Computes what is known, by the libraries that the product uses.

    Raises:
        FipsError: an answer is wrong, there is none, or it does not come from OpenSSL.
    """
    for name, works in _ANSWERS:
        try:
            is_right = works()
        except Exception as error:
            raise FipsError(
                f"{name} does not work: {type(error).__name__} {error}".strip(), _advice(name)
            ) from error
        if not is_right:
            raise FipsError(f"{name} gives a wrong answer", _INSTALL)


def _advice(name: str) -> str:
    if name == "Ed25519":
        return (
            "use cryptography 44 or newer, built against the system's OpenSSL: older ones refuse it"
            " in FIPS mode by themselves"
        )
    return _INSTALL


def _hex(*texts: str) -> Iterable[bytes]:
    return (bytes.fromhex(text) for text in texts)


def _sha256() -> bool:
    # SHA-256 of "abc" (FIPS 180-4); from OpenSSL, for Python has one of its own.
    import _hashlib  # noqa: PLC0415 - as above
    import hashlib  # noqa: PLC0415 - as above

    found = hashlib.sha256(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    return isinstance(found, _hashlib.HASH) and found.hexdigest() == expected


def _hmac() -> bool:
    # RFC 4231, test case 1: a module that is installed with -pedantic refuses the short key of 2.
    expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    return hmac.digest(b"\x0b" * 20, b"Hi There", "sha256").hex() == expected


def _aes_gcm() -> bool:
    # McGrew and Viega, The Galois/Counter Mode of Operation, test case 14.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - as above

    expected = "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    return AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), None).hex() == expected


def _hkdf() -> bool:
    # RFC 5869, test case 1.
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - as above

    salt, info = _hex("000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9")
    expected = (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    return HKDF(SHA256(), 42, salt, info).derive(b"\x0b" * 22).hex() == expected


def _pbkdf2() -> bool:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC  # noqa: PLC0415 - as above

    # RFC 7914 has vectors of PBKDF2-HMAC-SHA-256 whose salts are too short for a module.
    salt = b"saltSALTsaltSALTsaltSALTsaltSALTsalt"
    expected = "348c89dbcbd32b2f32d814b8116e84cf2b17347ebc1800181c4e2a1fb8dd53e1"
    derived = PBKDF2HMAC(SHA256(), 32, salt, 4096).derive(b"passwordPASSWORDpassword")
    return derived.hex() == expected


def _ecdsa() -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - as above

    # RFC 6979, A.2.5: P-256 with SHA-256, the message "sample".
    x, y, r, s = (
        int(text, 16)
        for text in (
            "60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6",
            "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299",
            "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
            "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
        )
    )
    from cryptography.hazmat.primitives.asymmetric.utils import (  # noqa: PLC0415 - as above
        encode_dss_signature,
    )

    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    key.verify(encode_dss_signature(r, s), b"sample", ec.ECDSA(SHA256()))
    return True


def _ed25519() -> bool:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - as above
        Ed25519PublicKey,
    )

    # RFC 8032, 7.1, test 2.
    public, message, signature = _hex(
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    )
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    return True


_ANSWERS: Final[tuple[tuple[str, Callable[[], bool]], ...]] = (
    ("SHA-256", _sha256),
    ("HMAC-SHA-256", _hmac),
    ("AES-256-GCM", _aes_gcm),
    ("HKDF", _hkdf),
    ("PBKDF2", _pbkdf2),
    ("ECDSA P-256", _ecdsa),
    ("Ed25519", _ed25519),
)
