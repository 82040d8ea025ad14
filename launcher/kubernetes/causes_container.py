"""Why a pod that has a node does not start, or ended before its agent could speak."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from parctl.launcher.kubernetes.causes import Cause, event_line, events_of, pod_name
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import containers, phase_of

PULL = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "ErrImageNeverPull")
SIGN_IN = re.compile(r"unauthorized|authentication required|denied|forbidden|401|403", re.I)
NOT_THERE = re.compile(r"not found|manifest unknown|does not exist|404", re.I)
NOT_REACHED = re.compile(r"no such host|timeout|connection refused|i/o timeout|no route", re.I)


def container_causes(facts: Facts) -> Sequence[Cause]:
    """One cause per pod that waits, the first pod first."""
    causes = []
    for pod in [*facts.run.rank_pods, *facts.run.coordinator_pods]:
        if phase_of(pod) != "Pending" or not pod["spec"].get("nodeName"):
            continue
        causes += _waiting(facts, pod)
    return causes


def ended_cause(pod: Object, container: str, state: Mapping[str, Any]) -> Cause:
    """A container that ended without a word of its agent."""
    message, code = str(state.get("message") or "").strip(), state.get("exitCode")
    where = f"pod {pod_name(pod)} on node {pod['spec'].get('nodeName')}"
    if state.get("reason") in ("StartError", "ContainerCannotRun") or code == 128:
        program = re.search(r'exec: "([^"]+)"', message)
        words = f"there is no `{program[1]}` in its image" if program else message
        return Cause(
            sentence=f"{where} cannot start: {words}",
            fix="the image needs Python 3.11 or newer as `python3`: `launch.image`",
        )
    if "No module named 'parctl" in message or "No module named parctl" in message:
        return Cause(
            sentence=f"{where} has no parctl in its image",
            fix="name an image that has it for the agent: `launch.kubernetes.agent_image`",
        )
    last = message.splitlines()[-1] if message else "it said nothing"
    return Cause(
        sentence=f"container {container} of {where} ended with {code}: {last}",
        fix=f"`kubectl logs {pod_name(pod)} -c {container}` shows what it printed",
    )


def _waiting(facts: Facts, pod: Object) -> list[Cause]:
    for container in containers(pod):
        waiting = (container.get("state") or {}).get("waiting")
        if waiting is None:
            ended = (container.get("state") or {}).get("terminated")
            if ended and ended.get("exitCode"):
                return [ended_cause(pod, container["name"], ended)]
            continue
        reason, said = str(waiting.get("reason")), str(waiting.get("message") or "")
        cause = _reason(facts, pod, container["name"], reason, said)
        if cause is not None:
            return [cause]
    return _before_containers(facts, pod)


def _reason(facts: Facts, pod: Object, container: str, reason: str, said: str) -> Cause | None:
    where = f"pod {pod_name(pod)}"
    if reason in PULL:
        pulls = [
            e for e in events_of(facts, "Failed") if e["involvedObject"]["name"] == pod_name(pod)
        ]
        text = next((str(e["message"]) for e in pulls if "pull" in str(e["message"])), said)
        return _image(_image_of(pod, container), text)
    if reason == "InvalidImageName":
        return Cause(
            sentence=f"`{_image_of(pod, container)}` is no name of an image",
            fix="correct `launch.image`",
        )
    if reason == "CreateContainerConfigError":
        missing = re.search(r'(secret|configmap) "([^"]+)" not found', said)
        key = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)", said)
        if missing:
            return Cause(
                sentence=f"there is no {missing[1].title()} {missing[2]} in the namespace, "
                f"which {where} needs",
                fix="create it, or correct `launch.secrets`",
            )
        if key:
            return Cause(
                sentence=f"{key[2]} {key[3].partition('/')[2] or key[3]} has no key {key[1]}",
                fix="correct `launch.secrets`",
            )
        if "runAsNonRoot" in said or "non-numeric user" in said:
            return Cause(
                sentence=f"the image of {where} runs as root, which the pod forbids",
                fix="build it with a numeric user other than 0",
            )
        return Cause(sentence=f"{where} cannot be set up: {said}", fix=None)
    if reason in ("CreateContainerError", "RunContainerError"):
        return Cause(sentence=f"{where} cannot start: {said}", fix=None)
    if reason == "CrashLoopBackOff":
        return Cause(
            sentence=f"container {container} of {where} ends again and again",
            fix=f"`kubectl logs {pod_name(pod)} -c {container} --previous` says why",
        )
    return None


def _image(image: str, text: str) -> Cause:
    if SIGN_IN.search(text) and not NOT_THERE.search(text):
        return Cause(
            sentence=f"the registry does not let the node have image {image}",
            fix="`launch.kubernetes.pull_secrets: [NAME]`, a Secret of the namespace",
            evidence=(text,),
        )
    if NOT_REACHED.search(text):
        return Cause(
            sentence=f"the node cannot reach the registry of image {image}",
            fix="check the name's host part, and the node's network",
            evidence=(text,),
        )
    return Cause(
        sentence=f"image {image} does not exist",
        fix="correct `launch.image`, or push the image",
        evidence=(text,),
    )


def _image_of(pod: Object, container: str) -> str:
    every = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    return str(next(each["image"] for each in every if each["name"] == container))


def _before_containers(facts: Facts, pod: Object) -> list[Cause]:
    """What the node does, or fails at, before any container is made."""
    own = [e for e in facts.events or () if e["involvedObject"]["name"] == pod_name(pod)]
    for event in own[::-1]:
        said, line = str(event["message"]), event_line(event)
        if event["reason"] in ("FailedMount", "FailedAttachVolume"):
            return [_mount(facts, said, line)]
        if event["reason"] == "FailedCreatePodSandBox":
            return [
                Cause(
                    sentence=f"node {pod['spec']['nodeName']} cannot set up the network of pod "
                    f"{pod_name(pod)}",
                    fix="look at the network plug-in of that node",
                    evidence=(line,),
                )
            ]
        if event["reason"] == "Pulling":
            return [
                Cause(
                    sentence=f"node {pod['spec']['nodeName']} is fetching the image "
                    f"{_image_of(pod, pod['spec']['containers'][0]['name'])}",
                    fix=None,
                    evidence=(line,),
                )
            ]
    return []


def _mount(facts: Facts, said: str, line: str) -> Cause:
    missing = re.search(r'(configmap|secret|persistentvolumeclaim) "([^"]+)" not found', said)
    if missing and missing[2].startswith(f"{facts.run_id}-plan"):
        return Cause(
            sentence=f"ConfigMap {missing[2]}, which holds the plan of the run, was deleted",
            fix=f"`parctl delete {facts.run_id}` and launch again; training resumes from its "
            "newest checkpoint",
            evidence=(line,),
        )
    if missing:
        return Cause(
            sentence=f"there is no {missing[1]} {missing[2]}, which a volume of the run is made of",
            fix="create it, or correct `launch.kubernetes.volumes`",
            evidence=(line,),
        )
    return Cause(
        sentence=f"a volume of the run cannot be mounted: {said}",
        fix="check `launch.kubernetes.volumes`",
        evidence=(line,),
    )
