"""Binds a device to its TPM, and attests its boot (docs/attestation.md). Needs tpm2-tools.

For developers of agents: it shows each call, and each command that a TPM gets. State is in --state.
    attest.py --url https://evergreen.school.example --device-id ID --token-file FILE [--chain CA]
"""

import argparse
import base64
import hashlib
import json
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

KEY = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
MEASURED = Path("/run/log/systemd/tpm2-measure.log")
CREDENTIAL = bytes.fromhex("badcc0de00000001")  # what tpm2_activatecredential expects first


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", required=True)
    options.add_argument("--ca-file")
    options.add_argument("--device-id", required=True)
    options.add_argument("--token-file", type=Path, required=True)
    options.add_argument("--state", type=Path, default=Path())
    options.add_argument("--chain", type=Path, action="append", default=[], help="a CA, in DER")
    options.add_argument("--event-log", type=Path, default=LOG, help="as the firmware wrote it")
    options.add_argument("--userspace-log", type=Path, default=MEASURED, help="as systemd wrote it")
    asked = options.parse_args()
    backend = Backend(asked.url, asked.token_file.read_text().strip(), asked.ca_file)
    tpm = Tpm(asked.state)
    mark = asked.state / "bound"
    if not mark.exists():
        enroll(backend, tpm, asked.device_id, [part.read_bytes() for part in asked.chain])
        mark.touch()
    logs = {"event_log": asked.event_log, "userspace_log": asked.userspace_log}
    sent = {name: path.read_bytes() for name, path in logs.items() if path.exists()}
    print(json.dumps(attest(backend, tpm, asked.device_id, sent)))


def enroll(backend: "Backend", tpm: "Tpm", device_id: str, chain: list[bytes]) -> None:
    """Shows that the key that signs evidence is in the TPM that its maker certified."""
    offer = backend.post(
        "tpm-enrollments",
        ek_public=encoded(tpm.endorsement_key()),
        ek_certificate=encoded(tpm.certificate()),
        ek_chain=[encoded(part) for part in chain],
        ak_public=encoded(tpm.signing_key()),
    )
    if not offer.get("id"):
        sys.exit(f"refused: {', '.join(offer['reasons'])}")
    secret = tpm.give_away(decoded(offer["credential_blob"]), decoded(offer["encrypted_secret"]))
    proof = hashlib.sha256(secret + device_id.encode()).digest()
    bound = backend.post(f"tpm-enrollments/{offer['id']}:activate", proof=encoded(proof))
    if not bound.get("bound"):
        sys.exit(f"not bound: {', '.join(bound['reasons'])}")


def attest(backend: "Backend", tpm: "Tpm", device_id: str, logs: dict[str, bytes]) -> dict:
    """Signs the registers for a fresh challenge."""
    nonce = decoded(backend.post("challenge")["nonce"])
    public = tpm.signing_key()
    name = b"\x00\x0b" + hashlib.sha256(public).digest()
    # The digest holds the evidence to this challenge, this device and this key.
    extra = hashlib.sha256(nonce + device_id.encode() + name).digest()
    quote, signature, registers = tpm.quote(extra)
    return backend.post(
        "attest",
        device_id=device_id,
        evidence={
            "nonce": encoded(nonce),
            "ak_public": encoded(public),
            "quotes": [
                {"version": "2.0", "quote": encoded(quote), "signature": encoded(signature)}
            ],
            "pcrs": {str(index): value.hex() for index, value in enumerate(registers)},
            **{name: encoded(log) for name, log in logs.items()},
        },
    )


class Backend:
    """The backend's calls for devices."""

    def __init__(self, url: str, token: str, ca_file: str | None) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self._tls = ssl.create_default_context(cafile=ca_file)

    def post(self, path: str, **body: object) -> dict:
        """Calls one; a status of 400 or more ends the program."""
        request = urllib.request.Request(
            f"{self._url}/api/v1/devices/{path}", json.dumps(body).encode(), self._headers
        )
        with urllib.request.urlopen(request, context=self._tls, timeout=30) as answer:
            return json.load(answer)


class Tpm:
    """A TPM, by tpm2-tools; their variable TPM2TOOLS_TCTI says which one."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def run(self, *command: str) -> None:
        subprocess.run(command, cwd=self._state, check=True, stdout=subprocess.DEVNULL)

    def read(self, name: str) -> bytes:
        return (self._state / name).read_bytes()

    def flush(self) -> None:
        """Makes room: a TPM holds three objects, and not every one has a resource manager."""
        for kind in ("--transient-object", "--loaded-session"):
            self.run("tpm2_flushcontext", kind)

    def endorsement_key(self) -> bytes:
        """Its public area. Made anew from the TPM's seed, it is always the same."""
        self.run("tpm2_createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub")
        self.flush()
        return self.read("ek.pub")[2:]  # behind the length of a TPM2B

    def certificate(self) -> bytes:
        """What the maker left in the TPM; empty when it left nothing."""
        try:
            self.run("tpm2_getekcertificate", "-o", "ek.der")
        except subprocess.CalledProcessError:
            return b""
        return self.read("ek.der")

    def signing_key(self) -> bytes:
        """The public area of the key that signs evidence; the same after each boot, too."""
        kind = ("-G", "ecc256:ecdsa-sha256:null", "-g", "sha256", "-a", KEY)
        self.run("tpm2_createprimary", "-C", "e", *kind, "-c", "ak.ctx")
        self.run("tpm2_readpublic", "-c", "ak.ctx", "-o", "ak.pub")
        self.flush()
        return self.read("ak.pub")[2:]

    def give_away(self, blob: bytes, secret: bytes) -> bytes:
        """The secret of a credential, which the TPM tells only for its own signing key."""
        parts = (len(part).to_bytes(2, "big") + part for part in (blob, secret))
        (self._state / "credential").write_bytes(CREDENTIAL + b"".join(parts))
        self.run("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
        self.run("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
        keys = ("-c", "ak.ctx", "-C", "ek.ctx", "-P", "session:session.ctx")
        self.run("tpm2_activatecredential", *keys, "-i", "credential", "-o", "secret")
        self.flush()
        return self.read("secret")

    def quote(self, extra: bytes) -> tuple[bytes, bytes, list[bytes]]:
        """A quote over all registers of the SHA-256 bank, its signature, and the registers."""
        made = ("-m", "quote", "-s", "signature", "-g", "sha256")
        self.run("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:all", "-q", extra.hex(), *made)
        self.run("tpm2_pcrread", "sha256:all", "-o", "registers")
        self.flush()
        found = self.read("registers")
        registers = [found[at : at + 32] for at in range(0, len(found), 32)]
        return self.read("quote"), self.read("signature"), registers


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


if __name__ == "__main__":
    main()
