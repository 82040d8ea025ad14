"""What a recipe asks for beyond the `restricted` pod security standard, and why that needs more."""

from parctl.recipes.kubernetes_spec import KubernetesSpec


def privileged_choices(spec: KubernetesSpec) -> tuple[str, ...]:
    """One sentence per choice that a namespace has to permit; empty: any namespace will do."""
    paths = [volume.host_path for volume in spec.volumes.values() if volume.host_path]
    reasons = []
    if spec.host_network:
        reasons.append("host_network puts pods on the network of their node, past NetworkPolicies")
    if paths:
        reasons.append(f"volumes show pods folders of their node: {', '.join(paths)}")
    if spec.rdma:
        reasons.append("rdma pins memory, for which pods get the capability IPC_LOCK")
    return tuple(
        f"launch.kubernetes: {reason}; the namespace has to enforce no more than `privileged`"
        for reason in reasons
    )
