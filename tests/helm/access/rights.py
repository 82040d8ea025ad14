"""Rights of the chart's roles, people who have some of them, and what the API server heard."""

import json
import os
import re
import subprocess
import sys
import time

from tests.cluster.api import Object
from tests.helm.chart import one, render
from tests.launcher.kubernetes.real import Here

Right = tuple[str, str]  # verb, resource or resource/subresource
# read before the first test: each test starts with an environment free of such names
MATRIX = os.environ.get("PARCTL_MATRIX") == "1"
SAMPLE = 2
HELLO = ["python3", "-S", "-c", "import time; time.sleep(0.5); print('hello')"]
SLEEP = ["python3", "-S", "-c", "import time; time.sleep(600)"]


def role(name: str) -> Object:
    return one(render("helm4"), "ClusterRole", f"parctl-{name}")


def rights(name: str) -> set[Right]:
    """What a role of the chart allows."""
    return rights_of(role(name)["rules"])


def rights_of(rules: list[Object]) -> set[Right]:
    return {
        (verb, resource)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rules_without(name: str, right: Right | None = None) -> list[Object]:
    """The rules of a role, less one right."""
    return less(role(name)["rules"], right)


def less(rules: list[Object], right: Right | None) -> list[Object]:
    result = []
    for rule in rules:
        for resource in rule["resources"]:
            verbs = [verb for verb in rule["verbs"] if (verb, resource) != right]
            if verbs:
                result.append({**rule, "resources": [resource], "verbs": verbs})
    return result


def sample(every: list[Right]) -> list[Right]:
    """A few of the rights, other ones each day, where time is short."""
    if MATRIX:
        return every
    start = int(time.time() // 86400) * SAMPLE
    return [every[(start + i) % len(every)] for i in range(SAMPLE)]


class User:
    """Somebody with some rights, and what the API server has heard of them."""

    def __init__(self, here: Here, rules: list[Object], cluster_rules: list[Object]) -> None:
        self.here = here
        self.kubeconfig = here.cluster.user(here.namespace, rules, cluster_rules=cluster_rules)
        text = self.kubeconfig.read_text()
        found = re.search(r"user-[0-9a-f]{8}", self.kubeconfig.name + text)
        assert found
        self.name = f"system:serviceaccount:{here.namespace}:{found[0]}"
        self.said = ""

    def parctl(self, *words: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "parctl", *words],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        self.said += done.stdout + done.stderr
        return done

    def heard(self) -> list[tuple[Right, int]]:
        """Each request about an object, with the answer's code."""
        found = []
        log = self.here.cluster.machine.logs / "audit.log"
        for line in log.read_text(errors="replace").splitlines():
            if self.name not in line:
                continue
            entry = json.loads(line)
            about = entry.get("objectRef")
            if entry["user"]["username"] != self.name or not (about and about.get("resource")):
                continue
            if "responseStatus" not in entry:
                continue
            resource = about["resource"]
            if about.get("subresource"):
                resource += f"/{about['subresource']}"
            found.append(((entry["verb"], resource), entry["responseStatus"]["code"]))
        return found

    def used(self) -> set[Right]:
        """Rights that were used. Applying what is not there takes `create` as well as `patch`."""
        used = {right for right, code in self.heard() if code < 400}
        made = {
            ("create", right[1])
            for right, code in self.heard()
            if right[0] == "patch" and code == 201
        }
        return used | made

    def granted(self) -> set[Right]:
        """Rights that were used, or would have been on an object that was not there."""
        return self.used() | {right for right, code in self.heard() if code == 404}

    def refused(self) -> set[Right]:
        return {right for right, code in self.heard() if code == 403}


def ok(user: User, *words: str) -> str:
    done = user.parctl(*words)
    assert done.returncode == 0, f"parctl {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout
