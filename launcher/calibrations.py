"""Where calibrations are kept: one file per topology, beside the runs of the user.

::

    $XDG_STATE_HOME/parctl/calibrations/DIGEST.json
"""

import json
from pathlib import Path

from parctl.errors import UsageError
from parctl.launcher.places import runs_root
from parctl.launcher.run_directory import write_whole
from parctl.planner.time.calibration import Calibration, calibration_from_json
from parctl.topology.model import Topology


def calibration_file(digest: str) -> Path:
    """The file of a topology, there or not."""
    return runs_root().parent / "calibrations" / f"{digest.removeprefix('sha256:')[:32]}.json"


def save_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Write a calibration to its own file, or to `path`. UsageError: it cannot be written."""
    target = path or calibration_file(calibration.topology)
    text = json.dumps(calibration.to_json(), indent=2) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    return target


def load_calibration(topology: Topology, path: Path | None = None) -> Calibration | None:
    """Return what was measured on this cluster, from `path` or else its own file; None: nothing.

    UsageError: the file of `path` is not there, is no calibration, or is another cluster's.
    """
    source = path or calibration_file(topology.digest)
    try:
        text = source.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        if path is None:
            return None
        raise UsageError(
            f"there is no file {path}", hint="`parctl bench RECIPE --calibration FILE` writes one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} cannot be read: {error}") from error
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{source} is no JSON: {error}") from error
    calibration = calibration_from_json(data, str(source))
    if calibration.topology != topology.digest:
        raise UsageError(
            f"{source} was measured on {calibration.source}, which is not {topology.source}: the "
            "topologies have different digests",
            hint="`parctl bench RECIPE` measures this cluster",
        )
    return calibration
