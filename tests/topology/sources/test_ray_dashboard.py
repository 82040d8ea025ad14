"""What the dashboard's answers, and its silence, mean to a person. A small server answers."""

import shlex
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parctl.errors import BackendError, UsageError
from parctl.topology.sources.ray_dashboard import Dashboard, NotFoundError, find_dashboard

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: job exists'


SEEN: list[str | None] = []  # the authorization of every request


class Answers(BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        SEEN.append(self.headers.get("Authorization"))
        code, body, headers = {
            "/api/version": (200, b'{"version": "4", "ray_version": "2.60.0"}', {}),
            "/old": (200, b"<html>hello</html>", {}),
            "/401": (401, b"no token", {}),
            "/403": (403, b"wrong token", {}),
            "/500": (500, TRACEBACK.encode(), {}),
            "/login": (302, b"", {"Location": "http://login.example/auth"}),
        }.get(self.path.partition("?")[0], (404, b"no such thing", {}))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.connection.close()  # in the middle of what is sent

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing."""


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    SEEN.clear()
    with serving() as address:
        yield Dashboard(address)


def test_the_token_is_shown_and_the_version_told(dashboard: Dashboard) -> None:
    assert dashboard.ray_version() == "2.60.0"
    assert SEEN == ["Bearer t0ken"]


@pytest.mark.parametrize("path", ["/401", "/403"])
def test_a_refusal_says_what_to_set(dashboard: Dashboard, path: str) -> None:
    with pytest.raises(BackendError, match=f"answers {path[1:]} to {path}") as error:
        dashboard.get(path)
    assert error.value.hint == "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def test_of_a_traceback_the_last_line_is_told(dashboard: Dashboard) -> None:
    with pytest.raises(BackendError, match=r"answers 500 to /500: ValueError: job exists$"):
        dashboard.get("/500", detail=1)


def test_404_is_an_answer_of_its_own(dashboard: Dashboard) -> None:
    with pytest.raises(NotFoundError, match="answers 404 to /none: no such thing"):
        dashboard.get("/none")
    assert dashboard.exists("/api/version") and not dashboard.exists("/none")


def test_a_page_is_no_json(dashboard: Dashboard) -> None:
    with pytest.raises(BackendError, match="answers something else than JSON to /old"):
        dashboard.get("/old")


def test_a_login_page_is_not_followed_and_gets_no_token(dashboard: Dashboard) -> None:
    with pytest.raises(BackendError, match=r"sends us to http://login\.example/auth"):
        dashboard.get("/login")


def test_an_upload_that_is_cut_is_said(dashboard: Dashboard) -> None:
    with pytest.raises(BackendError, match="does not answer"):
        dashboard.put("/api/packages/gcs/x.zip", b"0" * 2**24)


def test_nobody_there_is_said_with_what_to_name() -> None:
    with pytest.raises(BackendError, match=r"does not answer: \[Errno 111\]") as error:
        Dashboard("http://127.0.0.1:9").get("/api/version")
    assert "--address http://HOST:8265" in str(error.value.hint)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "own.pem", tmp_path / "key.pem"
    made = subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
            f"-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout {key} "
            f"-out {certificate}"
        ),
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    with serving(both) as address:
        with pytest.raises(BackendError, match="is not trusted") as error:
            Dashboard(address).ray_version()
        assert "SSL_CERT_FILE" in str(error.value.hint)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert Dashboard(address).ray_version() == "2.60.0"


def test_the_address_is_found_as_ray_job_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_dashboard(None).address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://b:1")
    assert find_dashboard(None).address == "http://b:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://a:1/")
    assert find_dashboard(None).address == "http://a:1"
    assert find_dashboard("c:1").address == "http://c:1"
    assert find_dashboard("c").address == "http://c:8265"


@pytest.mark.parametrize(
    ("meant", "found"),
    [
        ("auto", "http://127.0.0.1:8265"),
        ("head:6379", "http://head:8265"),
        ("ray://head:10001", "http://head:8265"),
        ("[::1]:6379", "http://[::1]:8265"),
    ],
)
def test_a_cluster_named_in_another_way_has_its_dashboard_on_that_host(
    monkeypatch: pytest.MonkeyPatch, meant: str, found: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", meant)
    assert find_dashboard(None).address == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ray://head:10001", "that begins with http"),
        ("http://", "is no address of a Ray dashboard"),
        ("http://a b:1", "is no address of a Ray dashboard"),
        ("http://a:99999", "is no address of a Ray dashboard"),
        ("http://user:secret@head:1", "of Ray's dashboard on head has a user name in it"),
    ],
)
def test_what_cannot_be_a_dashboard_is_refused_at_once(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        find_dashboard(given)
    assert "secret" not in str(caught.value)


def test_a_token_may_end_with_its_line_and_not_hold_another(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken\n")
    dashboard.ray_version()
    assert SEEN == ["Bearer t0ken"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "to\nken")
    with pytest.raises(UsageError, match="a request cannot carry") as caught:
        dashboard.ray_version()
    assert "to\nken" not in str(caught.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    path = tmp_path / "token"
    path.write_bytes(b"\xff\xfe")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(UsageError, match="a request cannot carry"):
        dashboard.ray_version()
