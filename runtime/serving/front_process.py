"""The first rank's hold on the front: start it, hear where it listens, notice its end."""

import errno
import json
import secrets
import socket
import subprocess
import sys
from typing import Any

from parctl.errors import ParctlError, UsageError
from parctl.recipes.frozen import to_json
from parctl.recipes.spec import Recipe
from parctl.runtime.serving.order import Order

END_S = 5.0  # for the front to end by itself


class FrontProcess:
    """Started before the weights are read, since its imports take a second too."""

    def __init__(self, recipe: Recipe, *, listen: str, num_replicas: int) -> None:
        assert recipe.serve is not None and recipe.inference is not None
        self.token = secrets.token_hex(16)
        order = Order(
            serve=recipe.serve,
            tokenizer=recipe.inference.tokenizer,
            chat_template=recipe.inference.chat_template,
            token=self.token,
            listen=listen,
            num_replicas=num_replicas,
        )
        self._where: tuple[int, str] | None = None
        self._doubtful = is_taken(recipe.serve.host, recipe.serve.port)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "parctl.runtime.serving.front"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(to_json(order)) + "\n")
        self._process.stdin.flush()

    def refuse_taken_port(self) -> None:
        """Raise UsageError before a model is read for nothing; waits only where it looks like it.

        The front decides: a port that the attempt before has left may be free in a moment.
        """
        if self._doubtful:
            self.where()

    def where(self) -> tuple[int, str]:
        """Return the port for leaders and the address for clients; raises what keeps it back."""
        if self._where is None:
            said = self._hear()
            self._where = int(said["leaders"]), str(said["url"])
        return self._where

    def wait_ready(self) -> None:
        """Wait until every leader is connected."""
        self._hear()

    def close(self) -> None:
        """Let it end by itself, else end it."""
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ParctlError(f"the front process ended with exit code {code}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise UsageError(said["error"], hint=said["hint"])
        return said


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there now; False where that cannot be told."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
