"""FIPS mode with a real module: Debian 13 and its openssl-provider-fips (`fips_root`).

It takes two minutes, root, and Debian's packages.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cryptography
import pytest

from servicekit.security import approved_stream, mode, nkey
from servicekit.security.passwords import hash_password, verify_password
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer
from tests.external import fips_root
from tests.support import debian

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_FIPS"), reason="run by `make test-fips`, as root"
    ),
    pytest.mark.timeout(900),
]

_MASTER: Final = bytes(range(32))
_PASSWORD: Final = "correct horse"


class Installation(fips_root.Debian):
    """Debian, and the product's code in FIPS mode."""

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the product's code in FIPS mode."""
        usual = fips_root.required(PYTHONPATH="/opt/newer:/evergreen/libs")
        return self.run("python3", "-c", code, **{**usual, **environment})

    def result(self, code: str) -> Any:
        """What code prints as JSON."""
        done = self.python(code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    debian.require(debootstrap="debootstrap")
    with fips_root.directory(tmp_path_factory) as root:
        found = Installation(root)
        fips_root.install(found)
        # The wheel of this environment, with an OpenSSL inside.
        wheel = root / "opt/wheel/cryptography"
        if not wheel.exists():
            shutil.copytree(Path(cryptography.__file__).parent, wheel)
        yield found


def test_the_module_is_taken_and_named(installed: Installation) -> None:
    """By name, version and the digest of its file; there is one libcrypto in the process."""
    found = installed.result(
        "import json, pathlib\n"
        "from servicekit.security import fips\n"
        "maps = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
        "libraries = {line.split()[-1] for line in maps if 'libcrypto' in line}\n"
        "print(json.dumps(fips.described() | {'libraries': sorted(libraries)}))"
    )
    assert (found["fips"], found["suites"]) == ("required", "approved")
    file = installed.root / found["module"]["file"].lstrip("/")
    digest = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
    assert found["module"]["sha256"] == digest.stdout.split()[0]
    assert found["module"]["name"] == "OpenSSL FIPS Provider"
    assert found["module"]["version"].startswith("3.")
    assert len(found["libraries"]) == 1


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"OPENSSL_MODULES": "/opt/empty"}, "no active FIPS module"),
        ({"OPENSSL_CONF": "/nowhere"}, "no active FIPS module"),
        ({"OPENSSL_CONF": ""}, "no active FIPS module"),
        ({"OPENSSL_MODULES": "/opt/changed"}, "no active FIPS module"),
        ({"PYTHONPATH": "/opt/wheel:/evergreen/libs"}, "cryptography has an OpenSSL of its own"),
        ({"PYTHONPATH": "/evergreen/libs"}, "Ed25519 does not work"),
    ],
    ids=["no module", "no file", "no setting", "one bit", "the wheel", "refuses Ed25519"],
)
def test_anything_else_is_refused(
    installed: Installation, environment: dict[str, str], reason: str
) -> None:
    """In one line, with what to do, before any line of the product's own."""
    done = installed.python("import servicekit; print('runs')", **environment)
    assert done.returncode == mode.REFUSED
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("FIPS mode refused: ")
    assert reason in line
    assert "; " in line


def test_a_module_that_is_not_the_default_is_refused(installed: Installation) -> None:
    """It is there, and nothing would use it."""
    loose = fips_root.CONFIGURATION.replace("default_properties = fips=yes", "")
    (installed.root / "etc/evergreen/loose.cnf").write_text(loose)
    done = installed.python("import servicekit", OPENSSL_CONF="/etc/evergreen/loose.cnf")
    assert done.returncode == mode.REFUSED
    assert "is there and not the default" in done.stderr


def test_a_forbidden_import_ends_the_process(installed: Installation) -> None:
    """Before the product is loaded, and later on."""
    path = "/opt/newer:/evergreen/libs:/opt/library"
    for code, reason in (
        ("import nacl, servicekit", "nacl is imported"),
        ("import servicekit, nacl", "nacl has cryptography of its own"),
    ):
        done = installed.python(code, PYTHONPATH=path)
        assert done.returncode == mode.REFUSED, done.stderr
        assert reason in done.stderr


def test_the_product_s_cryptography_works_in_the_module(installed: Installation) -> None:
    """What FIPS mode makes, an installation without it reads."""
    secret = base64.b64encode(bytes(32)).decode()
    made = installed.result(
        "import base64, io, json\n"
        "from servicekit.security import approved_stream, digests, jwt, nkey, signing, totp\n"
        "from servicekit.security.passwords import hash_password, verify_password\n"
        "from servicekit.security.sealing import Sealer\n"
        "from datetime import datetime, UTC\n"
        f"sealed = Sealer({_MASTER!r}, 'identity-keys').seal(b'seed')\n"
        f"hashed = hash_password({_PASSWORD!r})\n"
        f"assert verify_password(hashed, {_PASSWORD!r})\n"
        "stream = io.BytesIO()\n"
        f"approved_stream.encrypt_io(io.BytesIO(b'a backup'), stream, {_PASSWORD!r})\n"
        "public, private = approved_stream.new_key_pair()\n"
        "kept = io.BytesIO()\n"
        "to = [approved_stream.read_recipient(public)]\n"
        "approved_stream.encrypt_io(io.BytesIO(b'a backup'), kept, '', to)\n"
        "tokens = {}\n"
        "for algorithm in ('ed25519', 'es256'):\n"
        "    signer = signing.Signer(signing.new_seed(algorithm), algorithm)\n"
        "    token = jwt.encode({'iss': 'us', 'aud': 'us'}, signer, 'kind')\n"
        "    assert signer.public.verifies(b'x', signer.sign(b'x'))\n"
        "    tokens[token] = base64.b64encode(signer.public.raw).decode()\n"
        "at = datetime(2026, 1, 1, tzinfo=UTC)\n"
        "print(json.dumps({'sealed': base64.b64encode(sealed).decode(), 'hash': hashed,\n"
        "    'stream': base64.b64encode(stream.getvalue()).decode(),\n"
        "    'kept': base64.b64encode(kept.getvalue()).decode(), 'private': private,\n"
        f"    'nkey': nkey.public_key({secret!r}), 'tokens': tokens,\n"
        "    'code': totp.code_at(bytes(20), at), 'sha1': digests.sha1_hex(b'abc')}))"
    )
    sealer = Sealer(_MASTER, "identity-keys")
    assert sealer.open(base64.b64decode(made["sealed"])) == b"seed"
    assert verify_password(made["hash"], _PASSWORD)
    key = approved_stream.read_private_key(made["private"].encode())
    for sealed, words, private in (
        (made["stream"], _PASSWORD, None),
        (made["kept"], "", key),
    ):
        opened = io.BytesIO()
        approved_stream.decrypt_io(io.BytesIO(base64.b64decode(sealed)), opened, words, private)
        assert opened.getvalue() == b"a backup"
    assert made["nkey"] == nkey.public_key(secret)
    assert len(made["tokens"]) == 2
    assert made["sha1"] == "a9993e364706816aba3e25717850c26c9cd0d89d"


def test_what_an_installation_without_it_made_is_read_as_far_as_it_may_be(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Approved values are; argon2id, libsodium's seals and short salts are refused by name."""
    sealer = Sealer(_MASTER, "identity-keys")
    old_seal, old_hash = sealer.seal(b"seed"), hash_password(_PASSWORD)
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    new_seal, new_hash = sealer.seal(b"seed"), hash_password(_PASSWORD)
    _, name, cost, _, derived = new_hash.split("$")
    short = f"${name}${cost}${base64.b64encode(b'8 bytes!').decode().rstrip('=')}${derived}"
    stream = io.BytesIO()
    approved_stream.encrypt_io(io.BytesIO(b"a backup"), stream, _PASSWORD)
    signer = Signer(bytes(32))
    found = installed.result(
        "import io, json\n"
        "from servicekit.security import approved_stream\n"
        "from servicekit.security.passwords import UnknownSuiteError, verify_password\n"
        "from servicekit.security.sealing import Sealer, SealingError\n"
        "from servicekit.security.signing import PublicKey\n"
        f"sealer = Sealer({_MASTER!r}, 'identity-keys')\n"
        "told = []\n"
        f"for work in (lambda: sealer.open({old_seal!r}),\n"
        f"             lambda: verify_password({old_hash!r}, {_PASSWORD!r})):\n"
        "    try:\n"
        "        work()\n"
        "    except (SealingError, UnknownSuiteError) as error:\n"
        "        told.append(str(error))\n"
        "opened = io.BytesIO()\n"
        f"approved_stream.decrypt_io(io.BytesIO({stream.getvalue()!r}), opened, {_PASSWORD!r})\n"
        f"print(json.dumps([told, sealer.open({new_seal!r}).decode(),\n"
        f"    verify_password({new_hash!r}, {_PASSWORD!r}),\n"
        f"    verify_password({short!r}, {_PASSWORD!r}), opened.getvalue().decode(),\n"
        f"    PublicKey({signer.public.raw!r}).verifies(b'policy', {signer.sign(b'policy')!r})]))"
    )
    (seal, hashed), *rest = found
    assert "evergreen fips migrate" in seal
    assert "needs a new password" in hashed
    assert rest == ["seed", True, False, "a backup", True]


def test_what_is_not_approved_is_refused_where_nobody_asked(installed: Installation) -> None:
    """The libraries' other algorithms do not work in the process."""
    done = installed.python(
        "import servicekit\n"
        "from cryptography.hazmat.primitives.asymmetric import x25519\n"
        "from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305\n"
        "from cryptography.hazmat.primitives.kdf.scrypt import Scrypt\n"
        "for work in (x25519.X25519PrivateKey.generate,\n"
        "             lambda: ChaCha20Poly1305(bytes(32)),\n"
        "             lambda: Scrypt(bytes(16), 32, 1024, 8, 1).derive(b'x')):\n"
        "    try:\n"
        "        work()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        "    else:\n"
        "        raise AssertionError(work)\n"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
