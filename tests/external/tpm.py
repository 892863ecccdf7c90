"""Software TPMs (swtpm) with endorsement keys that a CA of their own certified."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.support import debian
from tests.support.stack import PATIENCE, until


@dataclass(frozen=True, slots=True)
class SoftwareTpm:
    """One that runs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """With which tpm2-tools talk to it."""
        return {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={self.folder}/socket"}

    def run(self, *command: str) -> None:
        """Runs a command of tpm2-tools."""
        subprocess.run(
            command, env=self.environment, cwd=self.folder, check=True, capture_output=True
        )

    @property
    def root_pem(self) -> str:
        """The root of the CA that certified it."""
        return (self.folder / "ca/swtpm-localca-rootca-cert.pem").read_text()

    @property
    def issuer(self) -> Path:
        """The certificate between it and the root, in DER."""
        path = self.folder / "issuer.der"
        pem = (self.folder / "ca/issuercert.pem").read_bytes()
        path.write_bytes(
            x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        )
        return path


@contextmanager
def running(folder: Path, banks: str = "sha1,sha256") -> Iterator[SoftwareTpm]:
    """Makes a TPM and starts it, until the block ends. Skips the test without swtpm."""
    debian.require("swtpm", "swtpm_setup", "tpm2_createek")
    for name in ("ca", "state"):
        (folder / name).mkdir(parents=True)
    ca = folder / "ca"
    (folder / "localca.conf").write_text(
        f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\n"
        f"issuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
    )
    (folder / "localca.options").write_text(
        "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n"
    )
    (folder / "setup.conf").write_text(
        "create_certs_tool = /usr/bin/swtpm_localca\n"
        f"create_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\n"
    )
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", str(folder / "state")]
    setup += ["--config", str(folder / "setup.conf"), "--create-ek-cert", "--pcr-banks", banks]
    subprocess.run(setup, check=True, capture_output=True, timeout=PATIENCE)
    sockets = ["--server", f"type=unixio,path={folder}/socket"]
    sockets += ["--ctrl", f"type=unixio,path={folder}/socket.ctrl"]
    flags = ["--flags", "not-need-init,startup-clear"]
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}/state", *sockets, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until((folder / "socket").exists, PATIENCE, "swtpm does not listen")
        yield SoftwareTpm(folder)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
