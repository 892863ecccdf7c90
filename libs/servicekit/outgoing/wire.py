"""A TCP connection whose state is known: what the peer's kernel has, and whether it still listens.

asyncio's streams lose what is written to a connection that the peer has closed, without a word:
`drain` does not wait below a high-water mark. Here each byte is handed to the kernel before `send`
returns, `is_closed` asks the kernel, and `unacknowledged` says what the peer's kernel has not
taken yet. TLS runs over memory in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import struct
import termios
from typing import Final

_CHUNK: Final = 64 << 10
_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME: Final = frozenset({62, 64})
_POLL_SECONDS: Final = 0.005
_MOST_CHUNKS: Final = 16
"""That are thrown away at once of what a peer says unasked."""
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    # So long the peer's kernel may be silent about what was sent.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class ClosedError(OSError):
    """The peer has closed the connection."""


class Wire:
    """A connection, which is made by `connect`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._tls: ssl.SSLObject | None = None
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._ended = False

    @classmethod
    async def connect(cls, family: int, address: tuple[object, ...]) -> Wire:
        """Connects to an address, not to a name.

        Raises:
            OSError: it cannot.
        """
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            for option in _KEEPALIVE:
                sock.setsockopt(*option)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Shakes hands.

        Raises:
            ssl.SSLError, OSError: it fails.
        """
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=server_name)
        while True:
            try:
                self._tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise ClosedError("closed during the handshake") from None
            except ssl.SSLError:
                # The peer is told why.
                with contextlib.suppress(OSError):
                    await self._flush()
                raise

    async def send(self, data: bytes) -> None:
        """Hands all of it to the kernel.

        Raises:
            OSError: the connection is closed or broken.
        """
        if self._tls is None:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
            return
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view[:_CHUNK]) :]
            await self._flush()

    async def receive(self, most: int) -> bytes:
        """Waits for bytes; none at the end of the stream.

        Raises:
            OSError: the connection is broken.
        """
        if self._tls is None:
            return await self._received(most)
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def is_closed(self) -> bool:
        """Whether the peer has closed, as far as our kernel knows; what it said is thrown away."""
        for _ in range(_MOST_CHUNKS):
            if self._ended:
                break
            try:
                data = self._socket.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._ended = True
                break
            if not data:
                self._ended = True
            elif self._tls is not None:
                self._in.write(data)
                self._read_away()
        return self._ended

    def _read_away(self) -> None:
        assert self._tls is not None
        try:
            while self._tls.read(_CHUNK):
                pass
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._ended = True

    def unacknowledged(self) -> int:
        """How many bytes the peer's kernel has not acknowledged.

        Raises:
            OSError: the connection is closed.
        """
        try:
            answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        except ValueError as closed:
            raise ClosedError("the connection is closed") from closed
        (count,) = struct.unpack("i", answer)
        return int(count)

    async def until_acknowledged(self) -> None:
        """Waits until the peer's kernel has everything.

        Raises:
            OSError: the connection is closed or broken.
        """
        pause = _POLL_SECONDS / 10
        while self.unacknowledged():
            if self.is_closed():
                raise ClosedError("closed before everything was taken")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_SECONDS)
        if self.is_closed():
            raise ClosedError("closed before everything was taken")

    async def finish(self) -> None:
        """Says that nothing more comes, and waits until the peer has read all and closes.

        Raises:
            OSError: the connection is broken.
        """
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            await self._flush()
        self._socket.shutdown(socket.SHUT_WR)
        while await self._received(_CHUNK):
            pass

    def close(self) -> None:
        """Closes at once."""
        self._ended = True
        self._socket.close()

    async def _flush(self) -> None:
        if data := self._out.read():
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _received(self, most: int) -> bytes:
        # `sock_recv` does not wait while there is something: a peer that never stops would keep
        # the loop, and with it all timeouts.
        await asyncio.sleep(0)
        return await asyncio.get_running_loop().sock_recv(self._socket, most)

    async def _fill(self) -> bool:
        data = await self._received(_CHUNK)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        return bool(data)


def client_context(ca_pem: str, certificate_pem: str, key_pem: str) -> ssl.SSLContext:
    """Whom a target is trusted by, and what is shown to it.

    Raises:
        ValueError: a text is no PEM, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if ca_pem:
            # What is not ASCII is a remark between certificates.
            context.load_verify_locations(cadata=ca_pem.encode("ascii", "ignore").decode())
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    except (ssl.SSLError, ValueError) as broken:
        raise ValueError("caPem") from broken
    if certificate_pem:
        # OpenSSL reads them from files alone: these are in memory, and go with the descriptor.
        descriptor = os.memfd_create("evergreen", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, f"{certificate_pem}\n{key_pem}\n".encode())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: "")
        except (ssl.SSLError, ValueError, OSError) as broken:
            raise ValueError("clientCertificatePem") from broken
        finally:
            os.close(descriptor)
    return context


def certificate_reason(error: ssl.SSLCertVerificationError) -> str:
    """Why a target's certificate is not taken."""
    if error.verify_code == _EXPIRED:
        return "CERTIFICATE_EXPIRED"
    if error.verify_code == _NOT_YET:
        return "CERTIFICATE_NOT_YET_VALID"
    if error.verify_code in _OTHER_NAME:
        return "CERTIFICATE_OF_ANOTHER_NAME"
    return "CERTIFICATE_UNKNOWN"
