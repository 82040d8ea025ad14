"""What the chart's DaemonSet runs on every GPU node: `python -m parctl.cli.discover`.

No command of people's, so it is not in `parctl --help`. It takes its settings from the environment
and imports neither typer nor rich: it lives as long as the node, in little memory.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Literal, cast

from parctl.errors import ParctlError, UsageError
from parctl.topology.discovery.loop import Pace, run
from parctl.topology.discovery.publish import Target

PUBLISH = ("crd", "configMap")


def target_of(environment: Mapping[str, str]) -> Target:
    """What to write where, from variables that the chart sets. UsageError names a missing one."""
    publish = environment.get("PARCTL_PUBLISH", "crd")
    if publish not in PUBLISH:
        raise UsageError(f"PARCTL_PUBLISH = {publish}, expected {' or '.join(PUBLISH)}")
    node = _needed(environment, "PARCTL_NODE")
    prefix = environment.get("PARCTL_CONFIG_PREFIX", "parctl-topology")
    return Target(
        node=node,
        publish=cast(Literal["crd", "configMap"], publish),
        namespace=_needed(environment, "PARCTL_POD_NAMESPACE"),
        config_map=f"{prefix}-{node}",
        pod_name=_needed(environment, "PARCTL_POD"),
        pod_uid=_needed(environment, "PARCTL_POD_UID"),
        events=environment.get("PARCTL_EVENTS") == "true",
        labels=environment.get("PARCTL_LABELS") == "true",
        taint_effect=environment.get("PARCTL_TAINT_EFFECT") or None,
    )


def pace_of(environment: Mapping[str, str]) -> Pace:
    alive = environment.get("PARCTL_ALIVE_FILE")
    published = environment.get("PARCTL_PUBLISHED_FILE")
    return Pace(
        interval_s=float(environment.get("PARCTL_INTERVAL_S", "300")),
        poll_s=float(environment.get("PARCTL_POLL_S", "10")),
        alive=Path(alive) if alive else None,
        published=Path(published) if published else None,
    )


def main() -> int:
    """Run until SIGTERM. SIGHUP asks for a reading now."""
    from parctl.launcher.kubernetes.client import Client
    from parctl.launcher.kubernetes.kubeconfig import find_access

    stop, wanted = Event(), Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    signal.signal(signal.SIGHUP, lambda number, frame: wanted.set())
    try:
        target, pace = target_of(os.environ), pace_of(os.environ)
        client = Client(find_access(None))
    except ParctlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    run(client, target, pace, stop=stop, wanted=wanted)
    return 0


def _needed(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise UsageError(f"{name} is not set", hint="the chart's DaemonSet sets it")
    return value


if __name__ == "__main__":
    sys.exit(main())
