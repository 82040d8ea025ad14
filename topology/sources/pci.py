"""PCI addresses, written one way: `0000:1b:00.0`, as sysfs has them.

NVML and NCCL print eight digits of domain, nvidia-smi capitals, some tools leave the domain out.
Two sources can only be compared when they write the same.
"""

import re

_ADDRESS = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")


def pci_address(text: str | None) -> str | None:
    """Rewrite an address; None for text that is none.

    >>> pci_address("00000000:1B:00.0"), pci_address("1b:00"), pci_address("GPU-1")
    ('0000:1b:00.0', '0000:1b:00.0', None)
    """
    match = _ADDRESS.fullmatch(text.strip()) if text else None
    if match is None:
        return None
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{match[2]}:{match[3]}.{match[4] or '0'}".lower()
