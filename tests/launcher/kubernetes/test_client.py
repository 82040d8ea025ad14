"""The client finds its cluster as kubectl does, speaks plainly, and survives what servers do."""

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.launcher.kubernetes.cases import TARGET, plan_of
from tests.launcher.kubernetes.fake_api import FakeApi, kubeconfig, serve

from parctl.errors import BackendError, UsageError
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.kubeconfig import find_access
from parctl.launcher.kubernetes.render import render
from parctl.launcher.kubernetes.submit import check, submit
from parctl.launcher.kubernetes.watch import ListWatch
from parctl.recipes.kubernetes_spec import KubernetesSpec

PODS = "/api/v1/namespaces/team-a/pods"


@pytest.fixture
def server() -> Iterator[tuple[FakeApi, str]]:
    with serve() as served:
        yield served


@pytest.fixture
def client(server: tuple[FakeApi, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    path = kubeconfig(tmp_path / "config", server[1], token="t0")
    monkeypatch.setenv("KUBECONFIG", str(path))
    return Client(find_access(None))


def pod(name: str, **labels: str) -> Any:
    return {"kind": "Pod", "metadata": {"name": name, "labels": labels}}


# kubeconfig


def test_the_first_file_that_names_something_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kubeconfig(tmp_path / "first", "https://one:1", token="a")
    second = kubeconfig(tmp_path / "second", "https://two:2", token="b")
    content = yaml.safe_load(second.read_text())
    content["contexts"].append({"name": "other", "context": {"cluster": "d", "user": "eve"}})
    content["clusters"].append({"name": "d", "cluster": {"server": "https://three:3/prefix/"}})
    content["users"].append({"name": "eve", "user": {"tokenFile": "token"}})
    second.write_text(yaml.safe_dump(content))
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'absent'}:{second}")
    current = find_access(None)
    assert (current.server, current.namespace, current.user) == ("https://one:1", "team-a", "ada")
    assert current.authorization() == "Bearer a"
    other = find_access("other")
    assert (other.server, other.namespace) == ("https://three:3/prefix", "default")
    assert other.authorization() == "Bearer from-file"
    assert find_access("other", namespace="mine").namespace == "mine"


def test_what_is_named_and_absent_is_said_with_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "https://one:1")))
    with pytest.raises(UsageError, match="context `prod` is not in the kubeconfig") as caught:
        find_access("prod")
    assert caught.value.hint == "it has contexts `test`"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="there is no such file"):
        find_access(None)


def test_a_program_that_signs_in_is_run_once_and_again_when_refused(
    server: tuple[FakeApi, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, address = server
    count = tmp_path / "count"
    program = tmp_path / "sign-in"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib\n"
        f"path = pathlib.Path({str(count)!r})\n"
        "number = int(path.read_text()) + 1 if path.exists() else 1\n"
        "path.write_text(str(number))\n"
        "info = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "assert info['kind'] == 'ExecCredential' and os.environ['WHO'] == 'ada'\n"
        "print(json.dumps({'status': {'token': f'token-{number}'}}))\n"
    )
    program.chmod(0o755)
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(program),
        "env": [{"name": "WHO", "value": "ada"}],
        "interactiveMode": "Never",
    }
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", address, exec=plugin)))
    client = Client(find_access(None))
    api.refuse = lambda method, path: (
        (401, {"message": "Unauthorized"}) if api.tokens[-1] == "Bearer token-2" else None
    )
    client.list("v1", "Pod")
    client.list("v1", "Pod")
    assert api.tokens == ["Bearer token-1"] * 2
    api.refuse = lambda method, path: (
        (401, {"message": "Unauthorized"}) if api.tokens[-1] == "Bearer token-1" else None
    )
    client.list("v1", "Pod")
    assert api.tokens[2:] == ["Bearer token-1", "Bearer token-2"]


@pytest.mark.parametrize(
    ("where", "broken", "words"),
    [
        ("contexts", ["test"], r"contexts\[0\]: expected `name: ...` and `context: ...`"),
        ("contexts", {"test": "c"}, "contexts: found a dict, expected a list"),
        ("contexts", [{"name": "test", "context": "c"}], r"contexts\[0\]"),
        ("users", [{"name": "ada", "user": {"token": "sécret"}}], "user ada: token holds"),
        ("users", [{"name": "ada", "user": {"token": "sec ret"}}], "user ada: token holds"),
        ("users", [{"name": "ada", "user": {"exec": "aws"}}], "user ada: exec: found a str"),
        ("users", [{"name": "ada", "user": {"exec": {}}}], "exec plugin speaks None"),
        ("clusters", [{"name": "c", "cluster": {"server": "https://one:x"}}], "is no address"),
        ("clusters", [{"name": "c", "cluster": {"server": "one:6443"}}], "is no address"),
        (
            "clusters",
            [{"name": "c", "cluster": {"server": "https://one", "proxy-url": "http://p:x"}}],
            "proxy-url `http://p:x` is no address",
        ),
        (
            "clusters",
            [
                {
                    "name": "c",
                    "cluster": {"server": "https://one", "certificate-authority-data": "eA=="},
                }
            ],
            "certificate-authority is no certificate",
        ),
    ],
)
def test_a_broken_kubeconfig_is_exit_2_and_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, broken: Any, words: str
) -> None:
    path = kubeconfig(tmp_path / "config", "https://one:1", token="t")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), where: broken}))
    monkeypatch.setenv("KUBECONFIG", str(path))

    with pytest.raises(UsageError, match=words) as caught:
        Client(find_access(None)).list("v1", "Pod")

    assert "ret" not in caught.value.message


def test_an_empty_kubeconfig_names_no_context_and_a_text_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    monkeypatch.setenv("KUBECONFIG", str(path))
    path.write_text("")
    with pytest.raises(UsageError, match="no kubeconfig names a current context"):
        find_access(None)
    path.write_text("hello")
    with pytest.raises(UsageError, match="is no kubeconfig: found a str"):
        find_access(None)


def test_the_line_end_of_a_token_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(tmp_path / "config", "https://one:1", token="secret\n")
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert find_access(None).authorization() == "Bearer secret"


@pytest.mark.parametrize(
    "printed",
    [
        "hello",
        '{"status": null}',
        '{"status": "x"}',
        '{"status": {"token": "t", "expirationTimestamp": "soon"}}',
    ],
)
def test_a_program_that_does_not_sign_in_is_exit_5(
    server: tuple[FakeApi, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "echo",
        "args": [printed],
    }
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", server[1], exec=plugin)))
    with pytest.raises(BackendError, match="user ada: `echo` gave no credential"):
        Client(find_access(None)).list("v1", "Pod")


def test_an_expired_token_is_exit_5_with_what_to_do(
    server: tuple[FakeApi, str], client: Client
) -> None:
    server[0].refuse = lambda method, path: (
        401,
        {"reason": "Unauthorized", "message": "Unauthorized"},
    )
    with pytest.raises(BackendError, match="ada is not signed in") as caught:
        client.list("v1", "Pod")
    assert caught.value.exit_code == 5
    assert caught.value.hint and "sign in again" in caught.value.hint


def test_a_missing_right_is_exit_5_with_the_servers_words(
    server: tuple[FakeApi, str], client: Client
) -> None:
    said = 'pods is forbidden: User "ada" cannot list resource "pods"'
    server[0].refuse = lambda method, path: (403, {"reason": "Forbidden", "message": said})
    with pytest.raises(BackendError, match="cannot list resource") as caught:
        client.list("v1", "Pod")
    assert caught.value.exit_code == 5


def test_nobody_at_the_address_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://127.0.0.1:9")))
    began = time.monotonic()
    with pytest.raises(BackendError, match="does not answer: Connection refused"):
        Client(find_access(None)).list("v1", "Pod")
    assert time.monotonic() - began < 5


def test_pages_are_put_together(server: tuple[FakeApi, str], client: Client) -> None:
    def pages(method: str, path: str) -> Any:
        token = "continue=next" in path
        items = [pod("b")] if token else [pod("a")]
        return 200, {"items": items, "metadata": {} if token else {"continue": "next"}}

    server[0].refuse = pages
    found = client.list("v1", "Pod")
    assert found is not None and [each["metadata"]["name"] for each in found] == ["a", "b"]
    assert "limit=500" in server[0].asked[0][1]


def test_a_server_that_is_busy_is_asked_again(server: tuple[FakeApi, str], client: Client) -> None:
    api = server[0]
    busy = {"headers": {"Retry-After": "0"}, "message": "too many requests"}
    api.refuse = lambda method, path: (429, dict(busy)) if len(api.asked) < 3 else None
    assert client.list("v1", "Pod") == []
    assert len(api.asked) == 3


# watches


def start_watch(client: Client) -> tuple[ListWatch, threading.Event, Any]:
    stop, news = threading.Event(), threading.Event()
    watch = ListWatch(client, "v1", "Pod", labels="x=y", changed=news.set, stopped=stop.is_set)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(10)

    return watch, news, end


def wait_for_names(watch: ListWatch, names: set[str]) -> None:
    deadline = time.monotonic() + 10
    while {each["metadata"]["name"] for each in watch.objects.values()} != names:
        assert time.monotonic() < deadline, watch.objects
        time.sleep(0.02)


def test_a_watch_sees_what_comes_and_goes_and_lists_once(
    server: tuple[FakeApi, str], client: Client
) -> None:
    api = server[0]
    api.put(f"{PODS}/a", pod("a"))
    watch, _, end = start_watch(client)
    wait_for_names(watch, {"a"})
    api.put(f"{PODS}/b", pod("b"))
    wait_for_names(watch, {"a", "b"})
    api.remove(f"{PODS}/a")
    wait_for_names(watch, {"b"})
    assert watch.lists == 1
    api.drop_watches = 1
    api.put(f"{PODS}/c", pod("c"))
    wait_for_names(watch, {"b", "c"})
    assert watch.lists == 1, "a connection that breaks is taken up where it broke"
    end_of(api, end)


def test_a_watch_whose_version_is_too_old_lists_again(
    server: tuple[FakeApi, str], client: Client
) -> None:
    api = server[0]
    api.put(f"{PODS}/a", pod("a"))
    watch, _, end = start_watch(client)
    wait_for_names(watch, {"a"})
    api.oldest = api.version + 2
    api.drop_watches = 1
    api.put(f"{PODS}/b", pod("b"))
    api.put(f"{PODS}/c", pod("c"))
    wait_for_names(watch, {"a", "b", "c"})
    assert watch.lists == 2
    end_of(api, end)


def end_of(api: FakeApi, end: Any) -> None:
    """A watch notices that it is to end with the next event."""
    timer = threading.Timer(0.2, lambda: api.put(f"{PODS}/last", pod("last")))
    timer.start()
    end()
    timer.join()


# submitting


def job_manifests(**launch: Any) -> Any:
    return render(plan_of(KubernetesSpec(kind="job"), **launch), "a-run", TARGET)


def test_the_workload_comes_last_and_then_owns_the_rest(
    server: tuple[FakeApi, str], client: Client
) -> None:
    reference = submit(client, job_manifests())
    assert reference.created
    api = server[0]
    assert api.names() == [
        "configmaps/a-run-plan",
        "services/a-run",
        "networkpolicies/a-run",
        "jobs/a-run",
    ]
    uid = api.objects["/apis/batch/v1/namespaces/team-a/jobs/a-run"]["metadata"]["uid"]
    for path, each in api.objects.items():
        if not path.endswith("jobs/a-run"):
            (owner,) = each["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["uid"]) == ("Job", uid)
    created = [path for method, path in api.asked if method == "POST"]
    assert len(created) == 4 and all("fieldValidation=Strict" in path for path in created)


def test_the_same_plan_twice_changes_nothing_and_another_is_refused(
    server: tuple[FakeApi, str], client: Client
) -> None:
    submit(client, job_manifests())
    before = json.dumps(server[0].objects)
    assert not submit(client, job_manifests()).created
    assert json.dumps(server[0].objects) == before
    with pytest.raises(UsageError, match="exists already with another plan") as caught:
        submit(client, job_manifests(retries=7))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("labels", [{}, {"parctl.dev/run": "another"}])
@pytest.mark.parametrize(
    "path", ["/api/v1/{}/configmaps/a-run-plan", "/apis/batch/v1/{}/jobs/a-run"]
)
def test_an_object_of_somebody_else_is_left_as_it_is(
    server: tuple[FakeApi, str], client: Client, path: str, labels: dict[str, str]
) -> None:
    name = path.rsplit("/", 1)[1]
    metadata = {"name": name, "namespace": "team-a", "labels": labels}
    server[0].put(path.format("namespaces/team-a"), {"metadata": metadata, "data": {}})
    before = json.dumps(server[0].objects)

    for send in (submit, check):
        with pytest.raises(UsageError, match=f"`{name}` already, which is"):
            send(client, job_manifests())

    assert json.dumps(server[0].objects) == before


def test_what_was_refused_is_not_taken_back(server: tuple[FakeApi, str], client: Client) -> None:
    """It may belong to a launch of the same name that was a little faster."""
    server[0].refuse = lambda method, path: (
        (422, {"reason": "Invalid", "message": "field is immutable"})
        if method == "PATCH" and "/configmaps/" in path
        else None
    )
    labels = {"parctl.dev/run": "a-run"}
    metadata = {"name": "a-run-plan", "namespace": "team-a", "labels": labels}
    metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    server[0].put("/api/v1/namespaces/team-a/configmaps/a-run-plan", {"metadata": metadata})
    with pytest.raises(UsageError, match="launched with another plan a moment ago"):
        submit(client, job_manifests())
    assert "DELETE" not in [method for method, _ in server[0].asked]


def test_what_a_launch_that_was_cut_short_has_left_is_made_anew(
    server: tuple[FakeApi, str], client: Client
) -> None:
    path, labels = "/api/v1/namespaces/team-a/configmaps/a-run-plan", {"parctl.dev/run": "a-run"}
    metadata = {"name": "a-run-plan", "namespace": "team-a", "labels": labels}
    uid = server[0].put(path, {"metadata": metadata, "immutable": True})["metadata"]["uid"]

    assert submit(client, job_manifests()).created

    assert server[0].objects[path]["metadata"]["uid"] != uid
    assert server[0].objects[path]["binaryData"]


def test_half_a_submission_is_taken_back(server: tuple[FakeApi, str], client: Client) -> None:
    said = 'admission webhook "no.example.com" denied the request: no jobs today'
    server[0].refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": said})
        if method == "POST" and path.split("?")[0].endswith("/jobs")
        else None
    )
    with pytest.raises(UsageError, match=r"Job a-run is refused .*: no jobs today|no jobs today"):
        submit(client, job_manifests())
    assert server[0].objects == {}


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (404, 'namespaces "team-a" not found', "there is no namespace `team-a`"),
        (404, "the server could not find the requested resource", "does not serve v1"),
        (403, "exceeded quota: small, requested: count/configmaps=1", "is refused by a quota"),
        (422, "spec.x: Invalid value", "is not valid for this cluster"),
        (500, "strict decoding error: unknown field", "500"),
    ],
)
def test_a_refusal_says_which_object_and_why(
    server: tuple[FakeApi, str], client: Client, code: int, said: str, words: str
) -> None:
    server[0].refuse = lambda method, path: (
        (code, {"reason": "x", "message": said}) if method == "POST" else None
    )
    with pytest.raises((UsageError, ApiError)) as caught:
        submit(client, job_manifests())
    assert words in caught.value.message


def test_certificates_in_a_kubeconfig_never_touch_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = base64.b64encode(b"no certificate").decode()
    user = {"client-certificate-data": data, "client-key-data": data}
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "c", "https://x:1", **user)))
    access = find_access(None)
    assert "no certificate" not in repr(access)
    with pytest.raises(UsageError, match="the client certificate of user ada"):
        replace(access).ssl_context()
