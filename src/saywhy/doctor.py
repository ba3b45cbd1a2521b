"""What is here: versions, devices, precision."""

from __future__ import annotations

import os
import time

import psutil
import torch

from saywhy.machine import free_bytes
from saywhy.version import versions

SIZE = 1024
SECONDS = 0.3


def findings() -> list[tuple[str, str]]:
    """Give names and findings, for people to read."""
    found = list(versions().items())
    memory = psutil.virtual_memory()
    found.append(("processors", f"{os.cpu_count()}, {torch.get_num_threads()} threads used"))
    found.append(("memory", f"{memory.total / 2**30:.0f} GiB, {free_bytes() / 2**30:.0f} GiB free"))
    for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        found.append((f"{name} on the CPU", f"{matrix_rate(kind, 'cpu') / 1e9:.0f} GFLOP/s in matrix products"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        found.append((f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"))
    if not torch.cuda.is_available():
        found.append(("GPU", "none; training runs on the CPU"))
    return found


def matrix_rate(kind: torch.dtype, device: str) -> float:
    """Measure matrix products: floating-point operations a second."""
    a = torch.randn(SIZE, SIZE, device=device).to(kind)
    float((a @ a)[0, 0])
    began, count = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        # Reading a number waits for the product, also where it is computed elsewhere.
        float((a @ a)[0, 0])
        count += 1
    return 2 * SIZE**3 * count / (time.monotonic() - began)
