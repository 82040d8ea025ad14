"""From checked `launch` fields to the frozen spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from parctl.recipes import spec
from parctl.recipes.kubernetes_schema import build_kubernetes
from parctl.recipes.launch_schema import LaunchFields
from parctl.recipes.ray_schema import build_ray

if TYPE_CHECKING:
    from parctl.recipes.build import Context


def build_launch(
    given: LaunchFields | None, context: "Context", *, script_env: Mapping[str, str]
) -> spec.LaunchSpec:
    """Check what belongs together; faults go to `context`."""
    fields = given or LaunchFields()
    for name in fields.env:
        if name.endswith(("TOKEN", "PASSWORD", "SECRET", "API_KEY", "ACCESS_KEY")):
            context.notes.append(f"launch.env.{name} is printed: a secret goes in launch.secrets")
    for name, secret in fields.secrets.items():
        path = f"launch.secrets.{name}"
        if (secret.from_env is None) == (secret.secret is None):
            hint = "`{from_env: VARIABLE}`, or `{secret: NAME, key: KEY}`"
            context.fault(path, "expected exactly one of `from_env` and `secret`", hint)
        elif (secret.secret is None) != (secret.key is None):
            context.fault(path, "`secret` and `key` go together", "`{secret: NAME, key: KEY}`")
        for where, names in (("launch.env", fields.env), ("script.env", script_env)):
            if name in names:
                message = f"{name} is also in `{where}`"
                context.fault(path, message, "keep one of the two", at_key=True)
    return spec.LaunchSpec(
        backend=fields.backend,
        retries=fields.retries,
        queue=fields.queue,
        image=fields.image,
        env=dict(fields.env),
        secrets={
            name: spec.SecretSpec(from_env=secret.from_env, secret=secret.secret, key=secret.key)
            for name, secret in fields.secrets.items()
        },
        timeout_s=None if fields.timeout_s is None else float(fields.timeout_s),
        stop_grace_s=float(fields.stop_grace_s),
        workdir=None if fields.workdir is None else str(context.folder / Path(fields.workdir)),
        kubernetes=build_kubernetes(fields.kubernetes, context),
        ray=build_ray(fields.ray),
        price_per_gpu_hour=(
            None if fields.price_per_gpu_hour is None else float(fields.price_per_gpu_hour)
        ),
    )
