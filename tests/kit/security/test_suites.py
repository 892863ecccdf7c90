"""New values by approved algorithms, with the suites switched and no module: what either kind of
installation has written, the other one reads, as far as it may."""

from __future__ import annotations

import base64
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from subprocess import run

import nkeys
import pytest

from servicekit.keys.ring import KeyRing, RingKey
from servicekit.security import approved_stream, digests, fips, jwt, mode, nkey
from servicekit.security.passwords import (
    PasswordHashes,
    UnknownSuiteError,
    decoys,
    hash_password,
    is_current,
    renewed,
    verify_password,
)
from servicekit.security.sealing import (
    Sealer,
    SealingError,
    approved_check_value,
    check_value,
    uses_standard,
)
from servicekit.security.signing import PublicKey, Signer, new_seed
from servicekit.security.suites import ARGON2ID, ED25519, ES256, PBKDF2_SHA256

_MASTER = bytes(range(32))
_PASSWORD = "correct horse"


@pytest.fixture
def approved(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """New values are made with approved algorithms; without them again when it is undone."""
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    yield monkeypatch


def test_sealed_values_are_read_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each suite is named; one is sealed anew as soon as the other one is written."""
    sealer = Sealer(_MASTER, "identity-keys")
    old = sealer.seal(b"seed")
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    new = sealer.seal(b"seed")
    assert new.startswith(b"$aes256gcm$")
    assert sealer.open(old) == sealer.open(new) == b"seed"
    assert (sealer.is_current(old), sealer.is_current(new)) == (False, True)
    assert (uses_standard(old), uses_standard(new)) == (True, False)
    monkeypatch.delenv(mode.SUITES)
    assert sealer.open(new) == b"seed"
    assert not sealer.is_current(new)


def test_an_approved_value_is_bound_to_its_purpose_and_name(approved: object) -> None:
    sealer = Sealer(_MASTER, "identity-keys")
    sealed = sealer.seal(b"seed")
    assert sealer.seal(b"seed") != sealed
    for other in (Sealer(_MASTER, "policy-signing"), Sealer(bytes(32), "identity-keys")):
        with pytest.raises(SealingError, match="not the one that sealed"):
            other.open(sealed)
    changed = (
        sealed.replace(b"aes256gcm", b"xchacha20poly1305"),
        sealed.removeprefix(b"$aes256gcm$"),
        sealed[:-1] + bytes([sealed[-1] ^ 1]),
        sealed[:20],
        b"$aes256gcm$",
    )
    for damaged in changed:
        with pytest.raises(SealingError):
            sealer.open(damaged)


def test_fips_mode_opens_no_other_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do; values of 0.1.0, without a name, are refused as well."""
    old = Sealer(_MASTER, "identity-keys").seal(b"seed")
    monkeypatch.setattr(mode, "_required", True)
    sealer = Sealer(_MASTER, "identity-keys")
    for sealed in (old, old.removeprefix(b"$xchacha20poly1305$")):
        with pytest.raises(SealingError, match="run `evergreen fips migrate`"):
            sealer.open(sealed)
    assert sealer.open(sealer.seal(b"seed")) == b"seed"


def test_marks_and_checks_differ_by_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tells the other one to a reader of the database."""
    sealer = Sealer(_MASTER, "identity-keys")
    standard = sealer.mark("anna")
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    assert len(sealer.mark("anna")) == len(standard) == 32
    assert sealer.mark("anna") not in {standard, sealer.mark("bert")}
    assert approved_check_value(_MASTER) != check_value(_MASTER)
    assert approved_check_value(_MASTER) != approved_check_value(bytes(32))


def test_passwords_change_at_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """And back again; both kinds of hashes are verified meanwhile."""
    old = hash_password(_PASSWORD)
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    found = renewed(PasswordHashes(old, old), _PASSWORD)
    assert found.typed == found.prepared
    assert found.typed.startswith("$pbkdf2-sha256$i=600000$")
    assert is_current(found.typed)
    assert verify_password(old, _PASSWORD)
    assert verify_password(found.typed, _PASSWORD)
    assert not verify_password(found.typed, "incorrect horse")
    monkeypatch.delenv(mode.SUITES)
    assert verify_password(found.typed, _PASSWORD)
    assert renewed(found, _PASSWORD).typed.startswith("$argon2id$")


def test_fips_mode_verifies_no_argon2_and_no_short_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2id is an error that says what helps; a salt below 16 bytes is of no hash of ours."""
    old = hash_password(_PASSWORD)
    monkeypatch.setattr(mode, "_required", True)
    with pytest.raises(UnknownSuiteError, match="needs a new password"):
        verify_password(old, _PASSWORD)
    new = hash_password(_PASSWORD)
    assert verify_password(new, _PASSWORD)
    _, name, cost, _, derived = new.split("$")
    salt = base64.b64encode(b"8 bytes!").decode().rstrip("=")
    assert not verify_password(f"${name}${cost}${salt}${derived}", _PASSWORD)


@pytest.mark.parametrize("algorithm", [ED25519, ES256])
def test_keys_sign_and_are_written(algorithm: str) -> None:
    """As 64 bytes, a JWK with its thumbprint, and PEM."""
    signer = Signer(new_seed(algorithm), algorithm)
    public = PublicKey(signer.public.raw)
    assert public.algorithm == algorithm
    signature = signer.sign(b"message")
    assert len(signature) == 64
    assert public.verifies(b"message", signature)
    assert not public.verifies(b"massage", signature)
    assert not public.verifies(b"message", signature[:-1])
    assert public.pem().startswith("-----BEGIN PUBLIC KEY-----\n")
    token = jwt.encode({"iss": "us", "aud": "them"}, signer, "kind")
    assert jwt.header(token)["alg"] == {ED25519: "EdDSA", ES256: "ES256"}[algorithm]
    assert jwt.decode(token, public, issuer="us", audience="them", required=["iss"])
    assert jwt.is_signed_by(token, [public.jwk()])
    other = Signer(new_seed(), ED25519).public
    assert not jwt.is_signed_by(token, [other.jwk()])
    with pytest.raises(ValueError, match="not good"):
        jwt.decode(token, other, issuer="us", audience="them", required=["iss"])


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """The members of a key of P-256 in the order of their names."""
    public = Signer(bytes(31) + b"\1", ES256).public
    assert public.jwk()["x"] == "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY"
    assert public.jwk()["y"] == "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"
    assert len(public.id) == 43


def test_a_ring_holds_both_kinds() -> None:
    """A rotation changes the algorithm, and tokens of the old key count as long as it verifies."""
    at = datetime(2026, 11, 1, tzinfo=UTC)
    seeds = {ED25519: new_seed(), ES256: new_seed(ES256)}
    keys = [
        RingKey(
            Signer(seed, algorithm).public,
            "users",
            algorithm,
            seed,
            at,
            at + timedelta(hours=number),
            at + timedelta(hours=2) if not number else None,
        )
        for number, (algorithm, seed) in enumerate(seeds.items())
    ]
    clock = at
    ring = KeyRing(lambda sealed: sealed, lambda: clock)
    ring.replace(keys)
    assert ring.signer("users").public.algorithm == ED25519
    clock = at + timedelta(hours=1)
    assert ring.signer("users").public.algorithm == ES256
    assert [key.algorithm for key in ring.verifying("users")] == [ED25519, ES256]
    clock = at + timedelta(hours=2)
    assert [key.algorithm for key in ring.verifying("users")] == [ES256]


def test_nkeys_are_those_of_the_library() -> None:
    """Seeds, public halves and signatures; what is damaged is refused."""
    for _ in range(20):
        seed = nkey.new_seed()
        known = nkeys.from_seed(bytearray(seed, "ascii"))
        assert nkey.public_key(seed) == known.public_key.decode()
        assert nkey.account_key(seed).sign(b"x") == known.sign(b"x")
    raw = os.urandom(32)
    expected = nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_ACCOUNT).decode()
    assert nkey.public_key(base64.b64encode(raw).decode()) == nkey.public_key(expected)
    user = nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_USER).decode()
    # Up to 0.2.0 the checksum was not compared, and such a seed has to go on working.
    changed = expected[:-1] + ("A" if expected[-1] != "A" else "I")
    assert nkey.public_key(changed) == nkey.public_key(expected)
    for bad in ("", "SA", seed[:-1], seed[:-1] + "a", user, "SAÄ"):
        with pytest.raises(ValueError, match="must be an account's seed"):
            nkey.account_key(bad)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_streams_open_for_those_who_may(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a passphrase or each of several keys; no change goes unseen."""
    monkeypatch.setattr(approved_stream, "_ITERATIONS", 1000)
    content = os.urandom(size)
    pairs = [approved_stream.new_key_pair() for _ in range(2)]
    recipients = [approved_stream.read_recipient(public) for public, _ in pairs]
    private = [approved_stream.read_private_key(text.encode()) for _, text in pairs]
    for_words, for_keys = io.BytesIO(), io.BytesIO()
    approved_stream.encrypt_io(io.BytesIO(content), for_words, _PASSWORD)
    approved_stream.encrypt_io(io.BytesIO(content), for_keys, "", recipients)
    ways = [(for_words, _PASSWORD, None), *((for_keys, "", key) for key in private)]
    for sealed, words, key in ways:
        opened = io.BytesIO()
        approved_stream.decrypt_io(io.BytesIO(sealed.getvalue()), opened, words, key)
        assert opened.getvalue() == content
    stranger = approved_stream.read_private_key(approved_stream.new_key_pair()[1].encode())
    for sealed, words, other in ((for_words, "wrong", None), (for_keys, "", stranger)):
        with pytest.raises(approved_stream.WrongKeyError):
            approved_stream.decrypt_io(io.BytesIO(sealed.getvalue()), io.BytesIO(), words, other)
    for sealed, words, key in ways[:2]:
        whole = sealed.getvalue()
        # Bits of the last character of the HMAC that count for nothing.
        end = whole.index(b"\n", whole.index(b"--- "))
        spelled = whole[: end - 1] + bytes([whole[end - 1] + 1]) + whole[end:]
        with pytest.raises(approved_stream.OpeningError):
            approved_stream.decrypt_io(io.BytesIO(spelled), io.BytesIO(), words, key)
        for at in (0, 5, 30, 60, 120, len(whole) - 1):
            changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            for damaged in (whole[:at], changed, whole + b"x"):
                with pytest.raises(approved_stream.OpeningError):
                    approved_stream.decrypt_io(io.BytesIO(damaged), io.BytesIO(), words, key)


def test_keys_of_other_kinds_are_no_recipients() -> None:
    for text in ("ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 AAAA", "age1x"):
        with pytest.raises(ValueError, match=r"."):
            approved_stream.read_recipient(text)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({mode.FIPS: "yes"}, "EVERGREEN_FIPS is 'yes'"),
        ({mode.FIPS: ""}, "EVERGREEN_FIPS is ''"),
        ({mode.SUITES: "fast"}, "EVERGREEN_SUITES is 'fast'"),
    ],
)
def test_other_words_are_refused(settings: dict[str, str], reason: str) -> None:
    done = run(
        [sys.executable, "-c", "import servicekit"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == mode.REFUSED
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert "set it to" in line


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "services.policy"],
        ["-m", "cli.entry", "version"],
        ["-m", "cli.entry", "health"],
        ["-m", "cli.entry", "up"],
        ["-m", "cli.entry", "backup", "schedule"],
        ["-m", "servicekit.zygote", "/nowhere"],
        ["-m", "deploy.launcher.gateway_files"],
    ],
    ids=" ".join,
)
def test_no_process_runs_with_the_openssl_of_a_wheel(command: list[str]) -> None:
    """It ends before it has read its settings, with one line and its own exit status."""
    done = run(
        [sys.executable, *command],
        env=os.environ | {mode.FIPS: mode.REQUIRED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == mode.REFUSED
    (line,) = done.stderr.splitlines()
    assert line.startswith("FIPS mode refused: ")
    assert done.stdout == ""


def test_forbidden_libraries_are_not_imported() -> None:
    """The product needs none of them in FIPS mode; what imports one all the same is ended."""
    code = """
from servicekit.security import mode
mode.require()
import cli.backup.crypt, cli.main, services.identity.__main__, services.policy.__main__
for name in ("nacl.pwhash", "pyrage", "nkeys", "servicekit.security.libsodium", "cli.backup.age"):
    try:
        __import__(name)
    except mode.ForbiddenImportError:
        continue
    raise AssertionError(name)
import nacl
"""
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == mode.REFUSED, done.stderr
    assert done.stderr.splitlines()[-1].startswith("FIPS mode refused: nacl has cryptography")


def test_nobody_s_hashes_are_of_all_usual_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a login can do the same work for each user, and for none."""
    assert set(decoys()) == {ARGON2ID}
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    assert set(decoys()) == {ARGON2ID, PBKDF2_SHA256}
    monkeypatch.setattr(mode, "_required", True)
    assert set(decoys()) == {PBKDF2_SHA256}
    with pytest.raises(mode.FipsError, match="BLAKE2b"):
        digests.keyed(bytes(32), b"x")


def test_a_module_may_have_x25519_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of OpenSSL 3.0 has; from elsewhere it is refused, and so is all else."""
    extra: dict[str, bytes] = {}
    needed = {name for _, name in fips._NEEDED}

    def source(_library: object, _kind: str, name: str) -> bytes | None:
        return extra.get(name, b"fips" if name in needed else None)

    monkeypatch.setattr(fips, "_source", source)
    library = ctypes.CDLL(None)
    extra["X25519"] = b"fips"
    fips._come_from_the_module(library)
    for name, where in (("X25519", b"default"), ("SCRYPT", b"fips")):
        extra[name] = where
        with pytest.raises(mode.FipsError, match=f"{name} is not refused"):
            fips._come_from_the_module(library)
        del extra[name]


def test_the_operator_may_want_one_module_alone() -> None:
    """By the digest of its file, in capitals or not; without, any that passes its tests."""
    found = fips.Module("M", "3.5", "", "/opt/fips/fips.so", "ab" * 32, "")
    for wanted in ("", "ab" * 32, "AB" * 32):
        fips._is_the_wanted(found, wanted)
    for other in ("cd" * 32, "ab", "x"):
        with pytest.raises(mode.FipsError, match="has the SHA-256 abab"):
            fips._is_the_wanted(found, other)


def test_what_was_imported_before_is_found() -> None:
    """Whoever imports a library before the product does not get past the check."""
    code = "import nacl\nfrom servicekit.security import mode\nmode.require()"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "nacl is imported, which has cryptography of its own" in done.stderr
