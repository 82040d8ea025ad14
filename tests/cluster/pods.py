"""Pods as tests write them: one container of the base image that passes the restricted standard."""

from typing import Any

from tests.cluster.api import Object
from tests.cluster.image import BASE
from tests.cluster.node import GPU_TAINT

TOLERATION = {"key": GPU_TAINT["key"], "operator": "Exists", "effect": "NoSchedule"}


def python(*lines: str) -> list[str]:
    """A command that runs these lines of Python; without site packages it starts fast."""
    return ["python", "-S", "-c", "\n".join(lines)]


def container(command: list[str], *, gpus: int = 0, memory: str = "") -> Object:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    limits |= {"memory": memory} if memory else {}
    return {
        "name": "main",
        "image": BASE,
        "command": command,
        "resources": {"limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def pod_spec(command: list[str], *, gpus: int = 0, memory: str = "", **rest: Any) -> Object:
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(command, gpus=gpus, memory=memory)],
        **rest,
    }


def pod(name: str, command: list[str], *, gpus: int = 0, memory: str = "", **rest: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": pod_spec(command, gpus=gpus, memory=memory, **rest),
    }


def headless_service(name: str, selector: dict[str, str]) -> Object:
    spec = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": True}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {**spec, "ports": [{"port": 29500}]},
    }


def exit_code(pod: Object) -> int:
    """The exit code of a pod's only container, which has ended."""
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    assert isinstance(code, int)
    return code
