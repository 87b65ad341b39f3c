"""Choose the device, the number of processes and the precision."""

from __future__ import annotations

import os

from bench.core.errors import UsageError


def pick_device(wanted: str) -> str:
    """Return a torch device string; "auto" is the GPU if there is one. Raises UsageError for an unusable device."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise UsageError(f"unknown device '{wanted}'; use auto, cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device '{wanted}' is not supported; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use; use --device cpu, or see `bench doctor`")
    return wanted


def synchronise(device: str) -> None:
    """Wait until the device has finished its queued work."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def pick_jobs(wanted: int | None, device: str, devices: int = 1) -> tuple[int, int]:
    """Return (processes, threads in each): on a CPU small models gain from processes, not threads; GPUs are not shared.

    A training process takes `devices` cores or GPUs. Raises UsageError for more GPUs than there are.
    """
    if device.startswith("cpu"):
        return wanted or max(1, cores() // devices), 1
    jobs = wanted or 1
    if jobs * devices > 1:
        if device != "cuda":
            raise UsageError(f"{device} is one GPU; with --jobs and --devices use --device cuda, which means all GPUs")
        needed, found = jobs * devices, len(visible_gpus())
        if needed > found:
            raise UsageError(
                f"--jobs {jobs} with --devices {devices} takes {needed} GPUs and torch finds {found} here; ask for less"
            )
    return jobs, 1


def visible_gpus() -> list[str]:
    """Return the GPUs of this process in torch's order, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(number) for number in range(count)])[:count]


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_precision(wanted: str, device: str) -> str:
    """Return "fp32" or "bf16"; "auto" is fp32, for comparable numbers. Raises UsageError if the hardware lacks bf16."""
    if wanted == "bf16" and not has_bf16(device):
        raise UsageError(f"{device} has no fast bf16 here; use --precision fp32")
    return "bf16" if wanted == "bf16" else "fp32"


def has_bf16(device: str) -> bool:
    """Whether matrix products in bf16 are native; a CPU without it is up to 75 times slower than in fp32."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = torch.backends.cpu.get_cpu_capability()
    return "AMX" in flags or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
