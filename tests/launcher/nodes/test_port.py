"""The port of the store is held, and rank 0 may listen on it all the same."""

import socket

import pytest

from parctl.launcher.nodes.interface import interface_of
from parctl.launcher.nodes.port import FIRST, LAST, hold_port


def test_a_held_port_is_free_for_who_reuses_addresses_and_for_nobody_else() -> None:
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        assert FIRST <= port <= LAST
        with socket.socket() as store:
            store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            store.bind(("127.0.0.1", port))
            store.listen()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_an_address_that_is_not_ours_has_no_port() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        hold_port("192.0.2.77")


def test_the_interface_of_an_address_is_found_by_the_kernel() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None
