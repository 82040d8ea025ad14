"""Ray's dashboard over HTTP: where it is, how to be let in, and what its answers mean.

Everything that parctl asks of a Ray cluster from outside goes through here, by the standard library
alone: importing `ray` takes a second, and what asks need not have it. The token is Ray's own
(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, `~/.ray/auth_token`). An https address is verified against the
system's authorities, or those of SSL_CERT_FILE.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from parctl.errors import BackendError, UsageError

DEFAULT_PORT = 8265
DEFAULT_ADDRESS = f"http://127.0.0.1:{DEFAULT_PORT}"
TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 120.0
MAX_ANSWER_BYTES = 2**28
TOKEN_HINT = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
OLDEST_JOBS_API = 4  # Ray 2.2


class NotFoundError(BackendError):
    """The dashboard answers 404: it has no such job, node or file."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard, by its address without a slash at the end.

    Every call raises BackendError when it cannot be reached, refuses us or answers nonsense.
    """

    address: str

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON that stands at `path`."""
        return self._json("GET", _with_query(path, query))

    def post(self, path: str, body: Any = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        return self._json("POST", path, data=data)

    def delete(self, path: str) -> Any:
        return self._json("DELETE", path)

    def put(self, path: str, data: bytes) -> None:
        with self._answer("PUT", path, data=data, timeout_s=UPLOAD_TIMEOUT_S) as answer:
            answer.read(MAX_ANSWER_BYTES)

    def exists(self, path: str) -> bool:
        """Whether `path` answers otherwise than 404."""
        try:
            with self._answer("GET", path) as answer:
                answer.read(MAX_ANSWER_BYTES)
        except NotFoundError:
            return False
        return True

    @contextmanager
    def stream(self, path: str, *, timeout_s: float, **query: str | int) -> Iterator[HTTPResponse]:
        """Read an answer as it comes; `timeout_s` is the longest silence."""
        with self._answer("GET", _with_query(path, query), timeout_s=timeout_s) as answer:
            yield answer

    def ray_version(self) -> str:
        """Ask who is there. BackendError: no Ray, or one whose jobs this parctl cannot run."""
        answer = self.get("/api/version")
        try:
            api, version = int(answer["version"]), str(answer["ray_version"])
        except (KeyError, TypeError, ValueError) as error:
            raise BackendError(
                f"{self.address} is no dashboard of Ray",
                hint="the address is that of the dashboard, http://HEAD:8265",
            ) from error
        if api < OLDEST_JOBS_API:
            raise BackendError(
                f"Ray at {self.address} is {version}, whose jobs API is {api}",
                hint=f"parctl needs {OLDEST_JOBS_API}, which came with Ray 2.2",
            )
        return version

    def _json(self, method: str, path: str, data: bytes | None = None) -> Any:
        with self._answer(method, path, data=data) as answer:
            try:
                return json.loads(answer.read(MAX_ANSWER_BYTES))
            except (ValueError, RecursionError) as error:
                raise BackendError(
                    f"Ray at {self.address} answers something else than JSON to {path}"
                ) from error

    @contextmanager
    def _answer(
        self, method: str, path: str, *, data: bytes | None = None, timeout_s: float = TIMEOUT_S
    ) -> Iterator[HTTPResponse]:
        request = Request(f"{self.address}{path}", data=data, method=method)
        if data is not None:
            kind = "application/octet-stream" if method == "PUT" else "application/json"
            request.add_header("Content-Type", kind)
        token = auth_token()
        if token is not None:
            # unredirected: it is for this dashboard and nobody that it sends us to
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            with build_opener(_SameHost).open(request, timeout=timeout_s) as answer:
                yield answer
        except HTTPError as error:
            raise _refusal(self.address, path, error) from error
        except (URLError, OSError, HTTPException) as error:
            raise _silence(self.address, error) from error


class _SameHost(HTTPRedirectHandler):
    """A dashboard behind a login page redirects; that page is no answer."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            raise BackendError(
                f"{req.full_url} sends us to {newurl[:120]}",
                hint="something before the dashboard wants a login: name an address behind it",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def find_dashboard(address: str | None) -> Dashboard:
    """The dashboard that is meant: given, or from the environment as `ray job` reads it.

    RAY_ADDRESS may name the cluster in another way; its dashboard is then looked for on that host.
    Raises UsageError for what cannot be a dashboard.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not given:
        meant = os.environ.get("RAY_ADDRESS", "")
        given = meant if meant.startswith(("http://", "https://")) else _on_its_host(meant)
    scheme, mark, rest = given.rpartition("://")
    if mark and scheme not in ("http", "https"):
        raise UsageError(
            f"`{given[:80]}` is not an address of Ray's dashboard: that begins with http",
            hint=f"perhaps `{_on_its_host(given)}`",
        )
    place = f"{scheme or 'http'}://{rest.rstrip('/')}"
    try:
        parts = urlsplit(place)
        right = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", place)
    except ValueError:
        right = False
    if not right:
        raise UsageError(
            f"`{place[:80]}` is no address of a Ray dashboard",
            hint="for example `ray:http://127.0.0.1:8265`",
        )
    if parts.username is not None:  # it would stand in every message
        raise UsageError(
            f"the address of Ray's dashboard on {parts.hostname} has a user name in it",
            hint=f"Ray lets in by its token: {TOKEN_HINT}",
        )
    return Dashboard(place if mark or parts.port else f"{place}:{DEFAULT_PORT}")


def _on_its_host(meant: str) -> str:
    """Where the dashboard usually is of `HOST:6379`, `ray://HOST:10001` or `auto`."""
    try:
        host = urlsplit(f"//{meant.rpartition('://')[2]}").hostname
    except ValueError:
        host = None
    if host in (None, "auto", "local"):
        return DEFAULT_ADDRESS
    return f"http://{f'[{host}]' if ':' in str(host) else host}:{DEFAULT_PORT}"


def auth_token() -> str | None:
    """Ray's token, from the first of its three places that has one.

    Raises UsageError for one that no request can carry.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
        try:
            token = Path(path).expanduser().read_text().strip()
        except (OSError, RuntimeError):  # RuntimeError: there is no home
            return None
        except UnicodeDecodeError:
            token = "\0"
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            "Ray's token has characters that a request cannot carry, such as a line break",
            hint="RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, holds the token and no more",
        )
    return token or None


def quoted(text: str) -> str:
    """A name as one part of a path."""
    return quote(text, safe="")


def _with_query(path: str, query: dict[str, str | int]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _refusal(address: str, path: str, error: HTTPError) -> BackendError:
    """What an HTTP error says. Of a traceback, which Ray sends with 500, only the last line."""
    with error:
        text = error.read(65536).decode(errors="replace").strip()
    said = text.splitlines()[-1][:300] if text and "<html" not in text.lower() else ""
    message = f"Ray at {address} answers {error.code} to {path.partition('?')[0]}"
    if error.code in (401, 403):
        return BackendError(message, hint=TOKEN_HINT)
    message = f"{message}: {said}" if said else message
    return (NotFoundError if error.code == 404 else BackendError)(message)


def _silence(address: str, error: Exception) -> BackendError:
    reason = getattr(error, "reason", None) or error
    text = str(reason) or type(reason).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return BackendError(
            f"the certificate of Ray at {address} is not trusted: {text}",
            hint="SSL_CERT_FILE names the file with its authority's certificate",
        )
    return BackendError(
        f"Ray at {address} does not answer: {text}",
        hint="name its dashboard: `--address http://HOST:8265`, `ray:http://HOST:8265` as the "
        "source of a topology, or RAY_API_SERVER_ADDRESS",
    )
