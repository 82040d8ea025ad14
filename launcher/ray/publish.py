"""The driver's word on the run, written where clients read it (`parctl.launcher.ray.record`).

Ray keeps its job table in the key-value store of the head, and a job writes its own row there when
it begins and ends; in between the row is ours to add to. There is no public call for it.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from parctl.launcher.backend import State
from parctl.launcher.ray.record import KEY, Details, Record, details_text, record_text
from parctl.launcher.run_directory import write_whole

ROW = "_ray_internal_job_info_{}"
NAMESPACE = b"job"
STEP_S = 2.0  # how often a mere step is worth a word


class Publisher:
    """Holds the record and the details, and writes them when they change."""

    def __init__(self, job_id: str, folder: Path) -> None:
        self._row = ROW.format(job_id).encode()
        self._file = folder / "state.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.record = Record(
            state=State.PLACING,
            attempt=0,
            restarts=0,
            step=None,
            ended_unix=None,
            verdict=None,
            reason=None,
            fix=None,
            updated_unix=time.time(),
        )
        self.details = Details(ranks=(), nodes={}, history=())
        self._stepped = 0.0

    def change(self, **changes: Any) -> None:
        """Change the record and tell it. An unchanged one is not told again."""
        changed = replace(self.record, **changes)
        if changed == self.record:
            return
        self.record = replace(changed, updated_unix=time.time())
        self._write()

    def step(self, step: int) -> None:
        """Note a step; it is told now and then, and with the next change."""
        self.record = replace(self.record, step=step)
        if time.monotonic() - self._stepped > STEP_S:
            self._stepped = time.monotonic()
            self.record = replace(self.record, updated_unix=time.time())
            self._write()

    def detail(self, **changes: Any) -> None:
        self.details = replace(self.details, **changes)
        write_whole(self._file, details_text(self.details))

    def happened(self, sentence: str) -> None:
        self.detail(history=(*self.details.history, sentence))

    def _write(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

        row = _internal_kv_get(self._row, namespace=NAMESPACE)
        if row is None:  # deleted, or not started as a job: there is nobody to tell
            return
        job = json.loads(row)
        job["metadata"] = {**(job.get("metadata") or {}), KEY: record_text(self.record)}
        _internal_kv_put(self._row, json.dumps(job), overwrite=True, namespace=NAMESPACE)
