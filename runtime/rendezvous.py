"""Where the ranks meet: the store that RANK 0 serves at MASTER_ADDR:MASTER_PORT.

torch's client rests for 0.2 to 0.75 s when a connection is refused, and of ranks that start at the
same time most come before RANK 0 listens. So they knock first, at shorter intervals.
"""

import os
import random
import socket
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

FIRST_REST_S, LONGEST_REST_S = 0.001, 1.0
GROWTH = 1.5  # of a rest over the one before
KNOCK_S = 1.0  # how long an answer may take


def open_store(rank: int, world_size: int, timeout: timedelta) -> Any:
    """Serve torch's TCPStore as RANK 0, or find it; `world_size` ranks do."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank != 0:
        wait_for_listener(host, port, timeout)
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world_size, is_master=rank == 0, timeout=timeout
    )


def wait_for_listener(host: str, port: int, timeout: timedelta) -> None:
    """Wait as long as connections are refused. Whatever else is wrong is for torch to say."""
    end = time.monotonic() + timeout.total_seconds()
    rest = FIRST_REST_S
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), KNOCK_S).close()
        except ConnectionRefusedError:
            time.sleep(rest * random.uniform(0.5, 1))  # thousands of ranks don't knock as one
            rest = min(rest * GROWTH, LONGEST_REST_S)
        except OSError:
            return
        else:
            return
