"""Connections to an API server: TLS, another name in its certificate, proxies."""

import http.client
import ssl
from base64 import b64encode
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from parctl.errors import UsageError
from parctl.launcher.kubernetes.kubeconfig import ClusterAccess


def connect(
    access: ClusterAccess, tls: ssl.SSLContext, timeout_s: float
) -> http.client.HTTPConnection:
    """A connection that is made with the first request. UsageError: a proxy of an unknown kind."""
    parts = urlsplit(access.server)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    proxy = _proxy_for(access, host)
    through, through_port = host, port
    if proxy is not None:
        if proxy.scheme != "http":
            raise UsageError(
                f"proxy {proxy.scheme}://{proxy.hostname} is of a kind that parctl does not speak",
                hint="use an HTTP proxy: `http://HOST:PORT`",
            )
        through, through_port = proxy.hostname or "", proxy.port or 80
    connection: http.client.HTTPConnection
    if secure:
        name = access.server_name
        connection = _SecureConnection(through, through_port, timeout_s, tls, name)
    else:
        connection = http.client.HTTPConnection(through, through_port, timeout=timeout_s)
    if proxy is not None:
        connection.set_tunnel(host, port, _proxy_headers(proxy))
    return connection


class _SecureConnection(http.client.HTTPSConnection):
    """HTTPS whose certificate may bear another name than the address (`tls-server-name`)."""

    def __init__(
        self, host: str, port: int, timeout_s: float, tls: ssl.SSLContext, server_name: str | None
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=tls)
        self._tls, self._server_name = tls, server_name

    def connect(self) -> None:
        if self._server_name is None:
            super().connect()
            return
        http.client.HTTPConnection.connect(self)
        self.sock: Any = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _proxy_for(access: ClusterAccess, host: str) -> SplitResult | None:
    address = access.proxy
    if address is None and not proxy_bypass(host):
        address = getproxies().get(urlsplit(access.server).scheme)
    return urlsplit(address) if address else None
