"""A certificate that is replaced while the gateway serves."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from cryptography import x509

from deploy.certificates import SERVER, Authority, now
from tests.gateway.harness import eventually, running_gateway
from tests.support.mounted import Mounted
from tests.support.stack import free_port


def _shown(port: int) -> int:
    """The serial number of the certificate that a new connection sees."""
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=30)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_a_secret_that_kubernetes_replaces_is_taken_over(tmp_path: Path) -> None:
    """Kubelet renames a link, and neither file of the certificate: no connection is cut."""
    authority = Authority.ensure_in(tmp_path / "ca")

    def made() -> dict[str, bytes]:
        files = tmp_path / "tls.crt", tmp_path / "tls.key"
        for path in files:
            path.unlink(missing_ok=True)
        authority.ensure_files(*files, ["localhost", "127.0.0.1"], SERVER, now())
        return {path.name: path.read_bytes() for path in files}

    def serial(files: dict[str, bytes]) -> int:
        return x509.load_pem_x509_certificate(files["tls.crt"]).serial_number

    volume, port = Mounted(tmp_path / "volume"), free_port()
    first, second = made(), made()
    volume.put(first)
    ca = authority.certificate_file
    async with running_gateway(
        port=port,
        certificate_file=volume.path / "tls.crt",
        private_key_file=volume.path / "tls.key",
        trusted=ca,
    ) as gateway:
        assert await asyncio.to_thread(_shown, port) == serial(first)
        before = await gateway.http1.get("/readyz")
        volume.put(second)

        async def is_new() -> bool:
            return await asyncio.to_thread(_shown, port) == serial(second)

        await eventually(is_new)
        assert gateway.process.poll() is None
        assert (await gateway.http1.get("/readyz")).status_code == before.status_code
