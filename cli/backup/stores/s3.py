"""Backups in a bucket: Amazon S3, or a store that speaks its protocol (MinIO, Ceph, Garage, …).

The library takes credentials from a file, from the environment, and from the machine it runs on
(roles of Amazon's machines and of Kubernetes' service accounts).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cli.backup.stores.store import PART, Access, Stored, StoreError, stored

_PIECE: Final = 16 << 20
_MOST_PIECES: Final = 9_000
"""A store takes 10,000."""
_CHUNK: Final = 1 << 20


class S3Store:
    """A bucket, and the beginning that all names in it have."""

    def __init__(self, bucket: str, prefix: str, access: Access) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._access = access
        self._made: Any = None

    @property
    def where(self) -> str:
        """The store as a person knows it."""
        at = f" ({self._access.s3_endpoint})" if self._access.s3_endpoint else ""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/") + at

    def staging(self, otherwise: Path) -> Path:
        """A directory of this machine."""
        return otherwise

    @property
    def _client(self) -> Any:
        if self._made is None:
            session = botocore.session.get_session()
            if self._access.s3_credentials is not None:
                session.set_config_variable(
                    "credentials_file", str(self._access.s3_credentials.absolute())
                )
            self._made = session.create_client(
                "s3",
                region_name=self._access.s3_region,
                endpoint_url=self._access.s3_endpoint or None,
                verify=str(self._access.s3_ca) if self._access.s3_ca else None,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=20,
                    read_timeout=120,
                    retries={"mode": "standard", "max_attempts": 5},
                    # The digest of what is sent is signed, which every store checks; checksums in
                    # trailers are Amazon's alone.
                    s3={
                        "addressing_style": "path" if self._access.s3_endpoint else "auto",
                        "payload_signing_enabled": True,
                    },
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return self._made

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong, as a sentence.

        Raises:
            StoreError: something went wrong.
        """
        try:
            yield
        except NoCredentialsError as error:
            raise StoreError(
                f"{self.where}: no credentials. Give EVERGREEN_BACKUP_S3_CREDENTIALS_FILE, a file"
                " with [default], aws_access_key_id = … and aws_secret_access_key = …"
            ) from error
        except ClientError as error:
            said = error.response.get("Error", {})
            raise StoreError(
                f"{self.where}: {said.get('Code', '?')}: {said.get('Message', 'refused')}"
            ) from error
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"{self.where}: {error}") from error

    def all(self) -> list[Stored]:
        """The backups below the prefix, the oldest first."""
        found = []
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    found.append(stored(item["Key"].removeprefix(self._prefix), item["Size"]))
        return sorted((one for one in found if one), key=lambda one: (one.at, one.name))

    def put(self, path: Path, name: str) -> None:
        """Uploads in pieces; the object is there when the upload is completed, or not at all."""
        if any(one.name == name for one in self.all()):
            raise StoreError(f"{self.where}/{name} is there already; it is not replaced")
        key, size = self._prefix + name, path.stat().st_size
        with self._told():
            if size <= _PIECE:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=path.read_bytes())
            else:
                self._upload(path, key, max(_PIECE, -(-size // _MOST_PIECES)))
            there = self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        if there != size:
            self.remove(name)
            raise StoreError(
                f"{self.where}/{name} was not stored as a whole: {there:,} of {size:,} bytes"
            )

    def _upload(self, path: Path, key: str, piece: int) -> None:
        about = {"Bucket": self._bucket, "Key": key}
        about["UploadId"] = self._client.create_multipart_upload(**about)["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            with path.open("rb") as file:
                while body := file.read(piece):
                    number = len(parts) + 1
                    answer = self._client.upload_part(**about, PartNumber=number, Body=body)
                    parts.append({"ETag": answer["ETag"], "PartNumber": number})
            self._client.complete_multipart_upload(**about, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(BotoCoreError, ClientError):
                self._client.abort_multipart_upload(**about)
            raise

    def get(self, name: str, path: Path) -> None:
        """Downloads a backup."""
        part = path.with_name(path.name + PART)
        try:
            with self._told(), part.open("xb") as file:
                part.chmod(0o600)
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    file.write(chunk)
            part.rename(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes a backup."""
        with self._told():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def tidy(self, tag: str) -> None:
        """Gives up the uploads that interrupted backups left: their pieces are paid for."""
        begins = f"{self._prefix}evergreen-{tag}-"
        with self._told():
            try:
                found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=begins)
            except ClientError:
                # Not every store lists them, and not every key may.
                return
            for upload in found.get("Uploads", ()):
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
