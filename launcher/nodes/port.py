"""A port for rank 0's store, which no other program of the node takes before it listens.

The socket is bound and never listens; rank 0 binds the same port beside it, which Linux allows when
both set SO_REUSEADDR, and listens. The kernel gives a bound port to nobody. But Ray's processes
pick a port, let it go, and bind it again a moment later, by the same permission. Ports that the
kernel hands out by itself are therefore avoided: Ray picks from those.
"""

import random
import socket

FIRST, LAST = 20000, 29999  # below the kernel's own (32768 and up) and NodePorts (30000 and up)
TRIES = 200


def hold_port(address: str) -> socket.socket:
    """Return a socket that is bound to a free port of `address`. Raises OSError: there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in random.sample(range(FIRST, LAST + 1), TRIES):
        held = socket.socket(family)
        try:
            with socket.socket(family) as probe:
                probe.bind((address, port))  # fails when anybody has it, listening or not
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((address, port))
        except OSError as error:
            held.close()
            refusal = error
        else:
            return held
    raise refusal
