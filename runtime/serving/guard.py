"""Who may come in, and how much they may bring: keys, sizes, patience."""

import asyncio
import hashlib
import hmac
from dataclasses import dataclass

from starlette.requests import Request

BODY_S = 30.0  # for a whole body to arrive
JSON = "application/json"


class HttpError(Exception):
    """A call that ends here, with a status and a sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of the keys that open the endpoint; none: it is open."""

    digests: tuple[bytes, ...]

    @classmethod
    def read(cls, value: str | None) -> "Keys":
        """`value`: keys, one per line."""
        keys = (value or "").split()
        return cls(tuple(hashlib.sha256(key.encode()).digest() for key in keys))

    def client(self, request: Request) -> str:
        """Return who asks, for equal shares; raises HttpError 401 for a wrong key.

        All digests are compared, each in constant time, so that time tells nothing.
        """
        if not self.digests:
            return request.client.host if request.client else ""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise HttpError(
                401,
                "the API key is missing or wrong: `Authorization: Bearer KEY`",
                "authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return f"key {matches.index(True)}"


async def read_body(request: Request, most: int) -> bytes:
    """Return the body. Raises HttpError for another type, too many bytes, and too slow ones."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise HttpError(415, f"found content type {kind or 'none'}, expected {JSON}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large(most)
                parts.append(part)
    except TimeoutError as error:
        message = f"the body did not come within {BODY_S:g} s"
        raise HttpError(408, message, headers={"connection": "close"}) from error
    return b"".join(parts)


def too_large(most: int) -> HttpError:
    # what is left of the body is not read, so the connection cannot go on
    return HttpError(413, f"a body has at most {most} bytes", headers={"connection": "close"})


class Gate:
    """Lets a number of calls in at once; the others are told to come again (429)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.inside = 0
        self.closed = False

    def enter(self) -> None:
        if self.closed:
            raise HttpError(
                503,
                "the server is about to end",
                "server_error",
                code="draining",
                headers={"retry-after": "5", "connection": "close"},
            )
        if self.inside >= self._most:
            raise HttpError(
                429,
                f"{self._most} calls are under way already: try again",
                "rate_limit_error",
                code="too_many_requests",
                headers={"retry-after": "1"},
            )
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nobody is inside. False: the time ran out."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.inside:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True
