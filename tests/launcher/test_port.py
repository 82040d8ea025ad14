"""The port of the store is held on every address, and rank 0 may listen on it all the same."""

import socket
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest

from parctl.launcher import port as port_module
from parctl.launcher.port import FIRST, LAST, hold_port


def test_a_held_port_is_for_the_store_of_torch_and_for_nobody_else() -> None:
    new_store: Any = import_module("torch.distributed").TCPStore
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        assert FIRST <= port <= LAST
        for address in ("", "127.0.0.1", "127.0.0.2"):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((address, port))
        timeout = timedelta(seconds=10)
        store = new_store("127.0.0.1", port, 2, True, timeout, wait_for_workers=False)
        client = new_store("127.0.0.1", port, 2, False, timeout)
        store.set("key", "value")
        assert store.libuvBackend
        assert client.get("key") == b"value"


def test_the_kernel_gives_a_held_port_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "FIRST", 40000)  # where the kernel chooses
    monkeypatch.setattr(port_module, "LAST", 49999)
    with hold_port("127.0.0.1") as held:
        for round_ in range(40_000):  # more than there are ports to choose from
            with socket.socket() as other:
                if round_ % 2:
                    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1" if round_ % 3 else "", 0))
                assert other.getsockname()[1] != held.getsockname()[1]


def test_a_port_that_a_connection_of_another_address_left_by_is_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store listens on every address, and would be refused for the sake of that one."""
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.3", 0))
        server.listen()
        client.bind(("127.0.0.2", 0))
        client.connect(server.getsockname())
        taken = client.getsockname()[1]
        monkeypatch.setattr(port_module, "FIRST", taken)
        monkeypatch.setattr(port_module, "LAST", taken)
        monkeypatch.setattr(port_module, "TRIES", 1)
        with pytest.raises(OSError, match="in use"):
            hold_port("127.0.0.1")


def test_an_address_that_is_not_ours_has_no_port() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        hold_port("192.0.2.77")


def test_a_machine_without_ipv6_has_ports_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with hold_port("127.0.0.1") as held:
        assert held.family == socket.AF_INET
