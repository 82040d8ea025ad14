"""What the cluster is told of a reading: once, whole, and nothing that belongs to others."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.topology.discovery.cluster import NODE, RECORD, Cluster, Refused
from tests.topology.discovery.nodes import DEAD_LINK, ECC, node, reading

from parctl.errors import BackendError
from parctl.topology.discovery.publish import (
    MANAGER,
    REFRESH_S,
    Published,
    Target,
    publish,
    recall,
)
from parctl.topology.discovery.reading import Reading, failed

TARGET = Target(
    node="gpu-1",
    publish="crd",
    namespace="parctl",
    config_map="parctl-topology-gpu-1",
    pod_name="discovery-x",
    pod_uid="u-2",
    events=True,
    labels=False,
    taint_effect=None,
)


def told(
    cluster: Cluster, found: Reading, before: Published | None = None, **changes: Any
) -> Published:
    now = lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)  # noqa: E731
    return publish(cluster, replace(TARGET, **changes), found, before or Published(), now=now)


def test_a_first_reading_is_a_record_a_status_and_no_event() -> None:
    cluster = Cluster()

    told(cluster, reading())

    assert cluster.asked == [f"GET {NODE}", f"PATCH {RECORD}", f"PATCH {RECORD}/status"]
    record = cluster.objects[RECORD]
    assert record["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "gpu-1", "uid": "u-1"}
    ]
    assert record["spec"]["links"] == ["X NV18", "NV18 X"]
    assert record["status"]["observedAt"] == "2026-01-02T03:04:05Z"
    assert {k: record["status"][k] for k in ("gpus", "product", "nvlink")} == {
        "gpus": 2,
        "product": "h100",
        "nvlink": "NV18",
    }


def test_the_same_reading_again_asks_the_cluster_nothing() -> None:
    cluster = Cluster()
    before = told(cluster, reading())
    cluster.asked.clear()

    assert told(cluster, reading(), before) is before
    assert cluster.asked == []


def test_after_an_hour_the_same_is_told_again() -> None:
    cluster = Cluster()
    before = replace(told(cluster, reading()), at_s=-REFRESH_S)
    cluster.asked.clear()

    told(cluster, reading(), before)

    assert f"PATCH {RECORD}/status" in cluster.asked


def test_a_fault_is_an_event_of_the_node() -> None:
    cluster = Cluster()
    before = told(cluster, reading())

    told(cluster, reading(None, DEAD_LINK), before)

    (event,) = cluster.events
    assert event["involvedObject"]["name"] == "gpu-1"
    assert event["metadata"]["namespace"] == "default"
    assert (event["type"], event["reason"]) == ("Warning", "DeadNvlink")


def test_who_may_not_create_events_has_the_record_told_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = Cluster()
    before = told(cluster, reading())
    cluster.refuse["POST /api/v1/namespaces/default/events"] = [403]

    after = told(cluster, reading(None, DEAD_LINK), before)

    assert told(cluster, reading(None, DEAD_LINK), after) is after
    assert cluster.events == []
    assert cluster.objects[RECORD]["status"]["conditions"] == list(after.conditions)
    assert "no event of DeadNvlink: the server answers 403" in capsys.readouterr().err


def test_events_that_a_server_could_not_take_are_told_again() -> None:
    cluster = Cluster()
    before = told(cluster, reading())
    cluster.refuse["POST /api/v1/namespaces/default/events"] = [503]

    with pytest.raises(Refused):
        told(cluster, reading(None, DEAD_LINK), before)
    told(cluster, reading(None, DEAD_LINK), before)

    assert [event["reason"] for event in cluster.events] == ["DeadNvlink"]


def test_without_events_a_fault_is_a_condition_only() -> None:
    cluster = Cluster()

    told(cluster, reading(None, ECC), events=False)

    assert cluster.events == []
    conditions = cluster.objects[RECORD]["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions}["MemoryHealthy"] == "False"


def test_a_reading_that_failed_leaves_the_record_as_it_was() -> None:
    cluster = Cluster()
    before = told(cluster, reading())
    record = dict(cluster.objects[RECORD]["spec"])

    told(cluster, failed("the driver did not answer"), before)

    assert cluster.objects[RECORD]["spec"] == record
    assert cluster.objects[RECORD]["status"]["conditions"][0]["status"] == "False"


def test_a_daemon_that_starts_again_tells_nothing_twice() -> None:
    cluster = Cluster()
    told(cluster, reading(None, ECC))
    assert len(cluster.events) == 1

    known = recall(cluster, TARGET, None)
    told(cluster, reading(None, ECC), known)

    assert len(cluster.events) == 1


def test_a_node_that_was_never_recorded_is_recalled_as_nothing() -> None:
    assert recall(Cluster(), TARGET, None) == Published()


def test_a_refusal_is_the_callers_to_handle() -> None:
    cluster = Cluster()
    cluster.refuse[f"GET {RECORD}"] = [403]

    with pytest.raises(Refused):
        recall(cluster, TARGET, None)


def test_a_cluster_without_the_definition_is_told_of_by_name() -> None:
    cluster = Cluster()
    cluster.served = False

    with pytest.raises(BackendError) as raised:
        told(cluster, reading(), recall(cluster, TARGET, None))

    assert str(raised.value) == (
        "the server answers 404; no definition nodetopologies.parctl.dev in this cluster: install"
        " one release of the chart with crds.install=true, or set discovery.publish=configMap"
    )


def test_a_record_that_nobody_touched_is_what_was_told() -> None:
    cluster = Cluster()
    before = told(cluster, reading())
    cluster.asked.clear()

    assert recall(cluster, TARGET, before) is before
    assert cluster.asked == [f"GET {RECORD}"]


def test_a_record_that_was_deleted_is_written_anew_and_expects_no_more_than_is_there() -> None:
    cluster = Cluster()
    before = told(cluster, reading(node(4)))
    del cluster.objects[RECORD]

    told(cluster, reading(node(2)), recall(cluster, TARGET, before))

    record = cluster.objects[RECORD]
    assert record["spec"]["expected"]["gpus"] == 2
    assert {c["status"] for c in record["status"]["conditions"]} == {"True"}


def test_a_record_that_was_edited_by_hand_is_put_right() -> None:
    cluster = Cluster()
    before = told(cluster, reading())
    cluster.objects[RECORD]["spec"]["links"] = ["X SYS", "SYS X"]

    told(cluster, reading(), recall(cluster, TARGET, before))

    assert cluster.objects[RECORD]["spec"]["links"] == ["X NV18", "NV18 X"]


def test_a_field_that_somebody_added_is_taken_out() -> None:
    """A domain that is not there would have ranks of two nodes placed as if NVLink joined them."""
    cluster = Cluster()
    before = told(cluster, reading())
    cluster.objects[RECORD]["spec"]["domain"] = "rack.1"
    cluster.others.add("domain")

    told(cluster, reading(), recall(cluster, TARGET, before))

    assert cluster.objects[RECORD]["spec"] == before.record


def test_without_the_kind_the_record_is_a_config_map_of_the_pod() -> None:
    cluster = Cluster()

    told(cluster, reading(), publish="configMap")

    assert cluster.asked == [f"PATCH {CONFIG_MAP}"]
    metadata = cluster.objects[CONFIG_MAP]["metadata"]
    assert metadata["labels"] == {"parctl.dev/node-topology": "true"}
    assert metadata["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "discovery-x", "uid": "u-2"}
    ]


CONFIG_MAP = "/api/v1/namespaces/parctl/configmaps/parctl-topology-gpu-1"


def test_a_gpu_that_is_missing_after_a_reboot_is_a_fault_by_the_config_map_too() -> None:
    cluster = Cluster()
    told(cluster, reading(node(4)), publish="configMap")

    known = recall(cluster, replace(TARGET, publish="configMap"), None)
    after = told(cluster, reading(node(2)), known, publish="configMap")

    health = {each["type"]: each["reason"] for each in after.conditions}
    assert health["DevicesHealthy"] == "MissingGpu"


@pytest.mark.parametrize(
    "edited",
    [
        {},
        {"record.json": "{"},
        {"record.json": "[1]"},
        {"record.json": '{"spec": [], "status": {"conditions": [{"type": "Healthy"}, 5]}}'},
        {"record.json": '{"spec": {"expected": {"gpus": "many", "nics": 1}, "gpus": 7}}'},
    ],
)
def test_a_config_map_that_was_edited_by_hand_is_put_right(edited: dict[str, str]) -> None:
    cluster = Cluster()
    told(cluster, reading(), publish="configMap")
    wanted = cluster.objects[CONFIG_MAP]["data"]
    cluster.objects[CONFIG_MAP]["data"] = edited

    known = recall(cluster, replace(TARGET, publish="configMap"), None)
    told(cluster, reading(), known, publish="configMap")

    assert cluster.objects[CONFIG_MAP]["data"] == wanted


def test_a_config_map_that_was_deleted_comes_back_with_the_next_reading() -> None:
    cluster = Cluster()
    before = told(cluster, reading(), publish="configMap")
    (path,) = set(cluster.objects) - {NODE}
    written = cluster.objects.pop(path)

    again = publish(cluster, replace(TARGET, publish="configMap"), reading(), before)

    assert again is before
    assert cluster.objects[path] == written  # to the second: the server sees no change


def managed(cluster: Cluster, manager: str, **labels: str) -> None:
    """Let somebody have written labels of the node."""
    meta = cluster.objects[NODE]["metadata"]
    meta["labels"] |= {f"nvidia.com/gpu.{key}": value for key, value in labels.items()}
    fields: dict[str, Any] = {f"f:nvidia.com/gpu.{key}": {} for key in labels}
    meta.setdefault("managedFields", []).append(
        {"manager": manager, "fieldsV1": {"f:metadata": {"f:labels": fields}}}
    )


def applied_labels(cluster: Cluster) -> dict[str, str]:
    labels: dict[str, str] = cluster.objects[NODE]["metadata"]["labels"]
    return {key.removeprefix("nvidia.com/gpu."): value for key, value in labels.items()}


def test_labels_are_written_where_nobody_else_has_them() -> None:
    cluster = Cluster()
    managed(cluster, "nfd-master", count="8")

    told(cluster, reading(node(domain="c.1")), labels=True)

    assert applied_labels(cluster) == {"count": "8", "clique": "c.1", "memory": "81559"}


def test_our_own_labels_follow_what_is_read() -> None:
    cluster = Cluster()
    managed(cluster, MANAGER, count="8")

    told(cluster, reading(), labels=True)

    assert applied_labels(cluster)["count"] == "2"


def test_a_label_that_somebody_took_meanwhile_is_left_to_them() -> None:
    cluster = Cluster()
    cluster.refuse[f"PATCH {NODE}"] = [409]

    told(cluster, reading(), labels=True)

    assert applied_labels(cluster) == {}


def test_a_fault_taints_the_node_and_its_end_takes_the_taint_back() -> None:
    cluster = Cluster()
    other = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    cluster.objects[NODE]["spec"]["taints"] = [other]

    before = told(cluster, reading(None, ECC), taint_effect="NoSchedule")
    ours = {"key": "parctl.dev/fault", "value": "Ecc", "effect": "NoSchedule"}
    assert cluster.objects[NODE]["spec"]["taints"] == [other, ours]

    told(cluster, reading(), before, taint_effect="NoSchedule")
    assert cluster.objects[NODE]["spec"]["taints"] == [other]


def test_a_node_that_changed_meanwhile_is_read_again_before_it_is_tainted() -> None:
    cluster = Cluster()
    cluster.refuse[f"PATCH {NODE}"] = [409]

    told(cluster, reading(None, ECC), taint_effect="NoSchedule")

    assert cluster.asked.count(f"GET {NODE}") == 2
    assert len(cluster.objects[NODE]["spec"]["taints"]) == 1


def test_a_reading_that_failed_neither_taints_nor_frees() -> None:
    cluster = Cluster()
    before = told(cluster, reading(None, ECC), taint_effect="NoSchedule")

    told(cluster, failed("no answer"), before, taint_effect="NoSchedule")

    assert len(cluster.objects[NODE]["spec"]["taints"]) == 1
