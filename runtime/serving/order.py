"""What the first rank tells the front to do, and where clients find it."""

from dataclasses import dataclass

from parctl.planner.plan import Plan
from parctl.recipes.inference_spec import ServeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a front is started with. The keys themselves come in the environment."""

    serve: ServeSpec
    tokenizer: str
    chat_template: str | None
    token: str  # that leaders have to know
    listen: str  # address for leaders
    num_replicas: int


def url_of(host: str, port: int) -> str:
    """Return the address for a browser on this machine.

    >>> url_of("0.0.0.0", 8000), url_of("::1", 8000)
    ('http://127.0.0.1:8000/v1', 'http://[::1]:8000/v1')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def serves_at(plan: Plan) -> str | None:
    """Say where clients will find an endpoint; None for other tasks."""
    serve = plan.recipe.serve
    if serve is None:
        return None
    if serve.port == 0:
        return "a port that its log names"
    if plan.backend["kind"] != "local":
        return f"port {serve.port} of the node with torch's rank 0"
    return url_of(serve.host, serve.port)
