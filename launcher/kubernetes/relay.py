"""Hands connections on from a pod to the pod with the endpoint: bytes in, bytes out, nothing read.

`python -P -m parctl.launcher.kubernetes.relay PORT TARGET` listens on all addresses and connects to
the same port of TARGET. Started by the agent of every pod that has not got torch's rank 0, and gone
with it. Standard library only.
"""

import asyncio
import signal
import sys
from contextlib import suppress

from parctl.launcher.processes import die_with_parent, set_name

PIECE_BYTES = 65536
CONNECT_S = 5.0


async def relay(port: int, target: str, *, listen: str | None = None, target_port: int = 0) -> None:
    """Serve until cancelled. `listen`: an address, None: all; `target_port`: 0 is `port`."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = asyncio.open_connection(target, target_port or port)
            far_reader, far_writer = await asyncio.wait_for(there, CONNECT_S)
        except (OSError, TimeoutError):
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        for each in (far_writer, writer):
            each.close()

    server = await asyncio.start_server(join, listen, port, reuse_address=True)
    async with server:
        await server.serve_forever()


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until the source says that it is through, and say so to the sink."""
    with suppress(OSError):
        while piece := await source.read(PIECE_BYTES):
            sink.write(piece)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


def main() -> int:
    die_with_parent(signal.SIGTERM)
    set_name("parctl-relay")
    asyncio.run(relay(int(sys.argv[1]), sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
