"""What the processor can do."""

from __future__ import annotations

from typing import Any

import torch


def cpu_capabilities() -> dict[str, Any]:
    """Names and sets of instructions of the CPU; empty where torch is too old to tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def is_amd() -> bool:
    """True of AMD's processors."""
    return str(cpu_capabilities().get("cpu_name", "")).startswith("AMD")
