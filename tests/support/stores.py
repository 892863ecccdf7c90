"""Stores of backups for tests: a directory, and S3 as moto speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import botocore.session
from moto.server import ThreadedMotoServer

BUCKET = "backups"
KEY_ID, SECRET = "test-key", "test-secret"


@dataclass(frozen=True)
class S3:
    """A bucket of a server on this machine."""

    endpoint: str
    credentials: Path

    @property
    def target(self) -> str:
        return f"s3://{BUCKET}/school/evergreen"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "EVERGREEN_BACKUP_TARGET": self.target,
            "EVERGREEN_BACKUP_S3_ENDPOINT": self.endpoint,
            "EVERGREEN_BACKUP_S3_CREDENTIALS_FILE": str(self.credentials),
        }

    @property
    def client(self):  # type: ignore[no-untyped-def]
        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )

    def objects(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
        return [item["Key"] for item in found]

    def clear(self) -> None:
        for key in self.objects():
            self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def s3(directory: Path) -> Iterator[S3]:
    """A server with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        credentials = directory / "s3-credentials"
        credentials.write_text(
            f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
        )
        credentials.chmod(0o600)
        found = S3(f"http://{host}:{port}", credentials)
        found.client.create_bucket(Bucket=BUCKET)
        yield found
    finally:
        server.stop()
