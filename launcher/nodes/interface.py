"""Which network interface has an address: gloo and NCCL want to be told by name.

Left to themselves they resolve the host's name, which on many machines gives 127.0.1.1 and a
connection that no other node can make.
"""

import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """Return the name of the interface with this IPv4 address; None: there is none.

    >>> interface_of("127.0.0.1")
    'lo'
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            question = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(handle.fileno(), SIOCGIFADDR, question)
            except OSError:  # it has no such address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
