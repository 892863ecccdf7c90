"""A client of the public API: finds the installation, logs in, and tells errors in a sentence."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import typer

from cli.errors import CliError
from cli.options import home_of

_TIMEOUT: Final = httpx.Timeout(60, connect=10)
_FIRST_PASSWORD: Final = (
    ". That was the password of the first start, in bootstrap.json; if it was changed, give the new"
    " one with --password-file"
)
API_TOKEN: Final = "EVERGREEN_API_TOKEN"
OTP: Final = "EVERGREEN_OTP"
"""A code of a second factor."""
API_TOKEN_FILE: Final = "EVERGREEN_API_TOKEN_FILE"
_TRIES: Final = 60
"""Of a call of which there may be many, a second apart."""
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


Parameter = str | list[str]
"""The value of a query parameter; a list is several of them. An empty one is left out."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API is, and who calls it."""

    url: str
    ca_file: Path | None
    email: str
    password: str = field(repr=False)
    connect: str = ""
    """HOST:PORT of the gateway, where the public address may lead nowhere from here."""
    advice: str = ""
    """What to do when the login is refused."""
    token: str = field(default="", repr=False)
    """An API token, with which nobody logs in."""


def find_access(
    home: Path | None,
    url: str,
    ca_file: Path | None,
    email: str,
    password_file: Path | None,
) -> Access:
    """Puts together what the options say and what `bootstrap.json` of the installation says.

    Raises:
        CliError: something is missing or cannot be read.
    """
    noted: dict[str, str] = {} if url else bootstrap(home_of(home))
    token = "" if email or password_file is not None else _api_token()
    if token:
        return _access(noted, url, ca_file, token=token)
    email = email or noted.get("email", "")
    if not email:
        raise CliError("say who logs in: --email")
    advice = ""
    if password_file is not None:
        password = read_text(password_file).rstrip("\r\n")
    elif email == noted.get("email"):
        password = noted.get("password", "")
        advice = _FIRST_PASSWORD
    elif sys.stdin.isatty():
        password = typer.prompt(f"Password of {email}", hide_input=True, err=True)
    else:
        raise CliError(f"give the password of {email}: --password-file")
    return _access(noted, url, ca_file, email=email, password=password, advice=advice)


def _api_token() -> str:
    """The API token of the environment, or of the file that it names.

    Raises:
        CliError: the file cannot be read.
    """
    file = os.environ.get(API_TOKEN_FILE, "")
    return os.environ.get(API_TOKEN, "") or (read_text(Path(file)).strip() if file else "")


def _access(
    noted: Mapping[str, str],
    url: str,
    ca_file: Path | None,
    *,
    email: str = "",
    password: str = "",
    token: str = "",
    advice: str = "",
) -> Access:
    if ca_file is None and noted.get("ca_file"):
        ca_file = Path(noted["ca_file"])
    # In containers the public address may be another machine's, or a proxy's with another CA.
    connect = os.environ.get("EVERGREEN_CONNECT", "") if noted else ""
    where = (url or noted["url"]).rstrip("/")
    return Access(where, ca_file, email, password, connect, advice, token)


def bootstrap(home: Path, otherwise: str = "name its address with --url") -> dict[str, str]:
    """What the first start of an installation wrote down about it.

    Args:
        home: of `make run`.
        otherwise: what else can be done where there is none.

    Raises:
        CliError: there is no installation, or it cannot be read.
    """
    path = home / "bootstrap.json"
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(noted["url"], str):
            raise TypeError("url")
    except FileNotFoundError:
        raise CliError(
            f"there is no installation in {home}; name one with --home, or {otherwise}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise CliError(f"{path} cannot be read: {broken}") from broken
    found: dict[str, str] = noted
    return found


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        CliError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{path} is not a text file") from error


class Api:
    """The API, as a logged-in user; all paths are those of the REST form."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    @property
    def url(self) -> str:
        """The installation's address, as its first start noted it or as the options name it."""
        return str(self._client.base_url).rstrip("/")

    def get(self, path: str, **parameters: Parameter) -> Any:
        """The JSON of an answer.

        Raises:
            CliError: with what the API says was wrong.
        """
        return _json(self._send("GET", path, parameters=parameters))

    def get_text(self, path: str, **parameters: str) -> str:
        """The text of an answer."""
        return self._send("GET", path, parameters=parameters).text

    def get_bytes(self, path: str) -> bytes:
        """The content of an answer; waits when there were too many calls.

        Raises:
            CliError: with what the API says was wrong.
        """
        for _ in range(_TRIES):
            try:
                return self._send("GET", path).content
            except RefusedError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                time.sleep(1)
        return self._send("GET", path).content

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Posts JSON; answers the JSON of the answer."""
        return _json(self._send("POST", path, body=body))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Changes by JSON; answers the JSON of the answer."""
        return _json(self._send("PATCH", path, body=body))

    def delete(self, path: str, **parameters: str) -> Any:
        """Deletes; answers the JSON of the answer."""
        return _json(self._send("DELETE", path, parameters=parameters))

    def pages(self, path: str, items: str, limit: int, **parameters: Parameter) -> Iterator[Any]:
        """The items of a list, page by page, at most `limit` of them."""
        for answer in self.answers(path, items, limit, **parameters):
            yield from answer[items]

    def answers(
        self, path: str, items: str, limit: int, **parameters: Parameter
    ) -> Iterator[dict[str, Any]]:
        """The pages of a list with what else they say, with at most `limit` items together."""
        token = ""
        while limit > 0:
            asked = {**parameters, "pageSize": str(min(limit, 500))}
            answer = self.get(path, **(asked | ({"pageToken": token} if token else {})))
            answer[items] = answer.get(items, [])[:limit]
            yield answer
            limit -= len(answer[items])
            token = answer.get("nextPageToken", "")
            if not token:
                return

    def stream(
        self, path: str, body: Mapping[str, Any] | None = None, **parameters: str
    ) -> Iterator[bytes]:
        """The parts of a long answer as they come.

        Args:
            body: what is posted; `None` for a call that reads.

        Raises:
            CliError: also when the connection breaks on the way.
        """
        try:
            method = "GET" if body is None else "POST"
            given = _given(parameters)
            with self._client.stream(method, path, params=given, json=body) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            raise _away(self._client, error) from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        try:
            answer = self._client.request(method, path, params=_given(parameters or {}), json=body)
        except httpx.HTTPError as error:
            raise _away(self._client, error) from error
        if answer.is_error:
            raise _refusal(answer)
        return answer


def _given(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    return {name: value for name, value in parameters.items() if value}


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as broken:
        raise CliError(f"{answer.url} does not answer as this product does") from broken


def _refusal(answer: httpx.Response) -> CliError:
    try:
        body = answer.json()
        text = f"{body['message']} (request {body['requestId']})"
        details = body.get("details") or [{}]
        reason = str(details[0].get("reason", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = f"{answer.url} answered {answer.status_code} {answer.reason_phrase}"
        reason = ""
    return RefusedError(text, answer.status_code, reason)


class RefusedError(CliError):
    """The API refused a call; `status` is the HTTP status, `reason` the error's, if it has one."""

    def __init__(self, message: str, status: int, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class AwayError(CliError):
    """The installation did not answer; what was asked may have been done."""


def _away(client: httpx.Client, error: httpx.HTTPError) -> CliError:
    where = client.base_url
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return CliError(f"the certificate of {where} is not trusted; name its CA with --ca-file")
    if isinstance(error, httpx.ConnectError) and "refused" in text:
        why = "nothing listens there. Does it run (`make run`)?"
        return AwayError(f"{where} cannot be reached: {why}")
    return AwayError(f"{where} cannot be reached, or broke off: {text}")


def lines(parts: Iterator[bytes]) -> Iterator[str]:
    """The lines of a text that comes in parts; only a line feed ends one.

    Raises:
        CliError: it is not UTF-8.
    """
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from map(_decoded, whole)
    if rest:
        yield _decoded(rest)


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as broken:
        raise CliError("the answer is not UTF-8") from broken


@contextmanager
def logged_in(access: Access) -> Iterator[Api]:
    """The API with an API token, or with a session of its own, which is ended afterwards.

    Raises:
        CliError: the installation cannot be reached or refuses the user.
    """
    with connected(access.url, access.ca_file, access.connect) as client:
        api = Api(client)
        if access.token:
            client.headers["authorization"] = f"Bearer {access.token}"
            yield api
            return
        session = _log_in(api, access)
        try:
            client.headers["authorization"] = f"Bearer {session['token']}"
        except (KeyError, TypeError) as broken:
            raise CliError(f"{access.url} does not answer as this product does") from broken
        try:
            yield api
        finally:
            with suppress(CliError):
                api.post("/auth/logout", {})


def _log_in(api: Api, access: Access) -> Any:
    """Opens a session; asks for a code where the account has a second factor.

    Raises:
        CliError: the login is refused.
    """
    login = {"email": access.email, "password": access.password}
    otp = os.environ.get(OTP, "")
    try:
        return api.post("/auth/login", {**login, **({"otp": otp} if otp else {})})
    except RefusedError as error:
        if error.status != HTTPStatus.UNAUTHORIZED:
            raise
        if error.reason != "OTP_NEEDED":
            advice = access.advice if error.reason == "WRONG_CREDENTIALS" else ""
            raise CliError(f"{error}{advice}") from error
    if not sys.stdin.isatty():
        raise CliError(
            f"{access.email} has a second factor: give a code of the authenticator app in {OTP};"
            f" for programs, make an API token and give it in {API_TOKEN}"
        )
    otp = typer.prompt("Code of your authenticator app, or a recovery code", err=True)
    return api.post("/auth/login", {**login, "otp": otp})


class _Elsewhere(httpx.HTTPTransport):
    """Connects to another address; the certificate has to be the asked host's all the same."""

    def __init__(self, connect: str, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls)
        host, _, port = connect.rpartition(":")
        self._there = {"host": host, "port": int(port)}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request, whose header `Host` remains."""
        return super().handle_request(
            httpx.Request(
                request.method,
                request.url.copy_with(**self._there),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": request.url.host},
            )
        )


def connected(url: str, ca_file: Path | None, connect: str = "") -> httpx.Client:
    """A client of an installation.

    Args:
        url: where it says that it is.
        ca_file: what its certificate is checked with; the system's CAs if none is given.
        connect: HOST:PORT to connect to instead.

    Raises:
        CliError: one of these is not what it should be.
    """
    try:
        tls = ssl.create_default_context(cafile=ca_file)
        # With a certificate that was given, the file is that chain and not its CA.
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return httpx.Client(
            base_url=url,
            verify=tls,
            timeout=_TIMEOUT,
            # A proxy of the shell's environment has no business between here and this machine.
            trust_env=not connect and urlsplit(url).hostname not in _LOCAL,
            transport=_Elsewhere(connect, tls) if connect else None,
        )
    except (OSError, ssl.SSLError) as error:
        raise CliError(f"{ca_file} is no file of CA certificates: {error}") from error
    except (ValueError, httpx.InvalidURL) as error:
        raise CliError(f"{connect or url} is not an address: {error}") from error
