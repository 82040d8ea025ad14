"""Where the clients of `task: serve` find it in the cluster.

The front listens in the pod that has torch's rank 0, and which pod that is, is decided when all are
up. So every other pod of the run hands connections on to it (`relay`), a pod is ready when the
endpoint answers through it, and one Service stands for all of them::

    client --> Service RUN-endpoint --> any pod of the run --> the pod with rank 0

An endpoint on loopback, which is the default of `serve.host`, is left alone. So is the one of a
RayJob, whose pods run Ray in place of the agent. Pure.
"""

from ipaddress import ip_address

from parctl.launcher.kubernetes.names import RANKS, ROLE, RUN, Object
from parctl.planner.plan import Plan

HEALTH = "/health"  # asks for no key; 503 until the weights are read, and while it drains
PERIOD_S = 5
ANSWER_S = 3


def endpoint_port(plan: Plan) -> int | None:
    """The port that clients may come to; None: none of their business, or not known before."""
    serve = plan.recipe.serve
    if serve is None or serve.port == 0 or _is_loopback(serve.host):
        return None
    return serve.port


def endpoint_name(run_id: str) -> str:
    return f"{run_id}-endpoint"


def endpoint_service(run_id: str, port: int) -> Object:
    """The Service, without namespace and the labels that every object has."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": endpoint_name(run_id)},
        "spec": {
            "selector": {RUN: run_id, ROLE: RANKS},
            "ports": [{"name": "http", "port": port, "targetPort": port}],
        },
    }


def readiness(port: int) -> Object:
    """The probe of a pod: it asks the endpoint itself, through the relay where it is elsewhere."""
    return {
        "httpGet": {"path": HEALTH, "port": port},
        "periodSeconds": PERIOD_S,
        "timeoutSeconds": ANSWER_S,
        "failureThreshold": 2,
    }


def clients_may_enter(port: int) -> Object:
    """Of a NetworkPolicy: who may ask is the business of `serve.api_key_from`."""
    return {"ports": [{"port": port, "protocol": "TCP"}]}


def endpoint_notes(
    plan: Plan, run_id: str, namespace: str, *, has_service: bool
) -> tuple[str, ...]:
    """Where it will be, in a sentence."""
    serve = plan.recipe.serve
    if serve is None:
        return ()
    port = endpoint_port(plan)
    if port is not None and not has_service:
        return (f"a RayJob has no Service for clients: port {port} of the pod with torch's rank 0",)
    if port is not None:
        url = f"http://{endpoint_name(run_id)}.{namespace}:{port}/v1"
        return (f"inside of the cluster the endpoint is {url}",)
    if not _is_loopback(serve.host):
        return ("serve.port = 0: no Service can name the port; the log does",)
    return (
        f"serve.host = {serve.host} is reached by `kubectl port-forward` alone; `0.0.0.0` lets "
        "other pods in, and makes a Service",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
