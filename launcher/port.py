"""A port for rank 0's store, which no other program of the machine takes before it listens.

The socket is bound and never listens; rank 0 binds the same port beside it, which Linux allows when
both set SO_REUSEADDR, and listens. The kernel gives a bound port to nobody.

The store listens on every address, so the port is held on every address: one connection that left
from another of the machine's addresses by the same port would refuse it. Ports that the kernel
hands out by itself are avoided: other programs (Ray's among them) pick one there, let it go, and
bind it again a moment later.
"""

import random
import socket

FIRST, LAST = 20000, 29999  # below the kernel's own (32768 and up) and NodePorts (30000 and up)
TRIES = 200


def hold_port(address: str) -> socket.socket:
    """Return a socket that is bound to a port which is free on every address of this machine.

    Raises OSError: `address`, where the ranks are to meet, is not this machine's, or no port is
    free.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as ours:
        ours.bind((address, 0))
    for port in random.sample(range(FIRST, LAST + 1), TRIES):
        try:
            with _everywhere() as probe:
                probe.bind(("", port))  # fails when anybody has it, listening or not
        except OSError as error:
            refusal = error
            continue
        held = _everywhere()
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", port))
        except OSError as error:
            held.close()
            refusal = error
        else:
            return held
    raise refusal


def _everywhere() -> socket.socket:
    """Return a socket which, bound to "", has the addresses of both families."""
    if not socket.has_dualstack_ipv6():
        return socket.socket()
    both = socket.socket(socket.AF_INET6)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return both
