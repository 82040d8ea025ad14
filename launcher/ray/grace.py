"""How long ranks may save when a run is cancelled: from the client to the driver.

Ray's request to stop a job carries no words. So the client first leaves a package that is empty but
for its name, which the driver finds when the request comes. Ray forgets it after some minutes.
"""

import re

MOST_S = 86400.0


def grace_package(run_id: str, grace_s: float) -> str:
    """The path of the package that stands for `grace_s` seconds.

    >>> grace_package("tiny-1", 2.5)
    '/api/packages/gcs/_ray_pkg_parctl-grace_tiny-1_2500.zip'
    """
    return f"/api/packages/gcs/{_prefix(run_id)}{round(min(grace_s, MOST_S) * 1000)}.zip"


def asked_grace_s(run_id: str) -> float | None:
    """What a client has left word of, in seconds; the shortest of several. In the driver."""
    from ray.experimental.internal_kv import _internal_kv_list

    found = []
    for key in _internal_kv_list(f"gcs://{_prefix(run_id)}"):
        match = re.search(r"_(\d+)\.zip$", key.decode())
        if match:
            found.append(int(match[1]) / 1000)
    return min(found, default=None)


def _prefix(run_id: str) -> str:
    return f"_ray_pkg_parctl-grace_{run_id}_"
