from parctl.launcher.nodes.interface import interface_of


def test_the_interface_of_an_address_is_found_by_the_kernel() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None
