"""Where to compute, in how many processes, and in which precision."""

from __future__ import annotations

import os

from bench.core.errors import UsageError


def pick_device(wanted: str) -> str:
    """A torch device string; "auto" is the machine's accelerator if it has one."""
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


def pick_jobs(wanted: int | None, device: str, devices: int = 1) -> tuple[int, int]:
    """(processes, threads in each): small models on a CPU gain from processes, not threads; a GPU is not shared.

    A process that trains takes `devices` cores or GPUs. Raises UsageError for more GPUs than there are.
    """
    if device.startswith("cpu"):
        return wanted or max(1, cores() // devices), 1
    jobs = wanted or 1
    if jobs * devices > 1:
        if device != "cuda":
            raise UsageError(f"{device} is one GPU; with --jobs and --devices use --device cuda, which is all of them")
        needed, found = jobs * devices, len(visible_gpus())
        if needed > found:
            raise UsageError(
                f"--jobs {jobs} with --devices {devices} takes {needed} GPUs and torch finds {found} here; ask for less"
            )
    return jobs, 1


def visible_gpus() -> list[str]:
    """The GPUs of this process in torch's order, each as CUDA_VISIBLE_DEVICES names it."""
    import torch

    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(number) for number in range(count)])[:count]


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_precision(wanted: str, device: str) -> str:
    """ "fp32" or "bf16"; auto is fp32, so that numbers compare across machines. bf16 only where the hardware has it."""
    if wanted == "bf16" and not has_bf16(device):
        raise UsageError(f"{device} has no fast bf16 here; use --precision fp32")
    return "bf16" if wanted == "bf16" else "fp32"


def has_bf16(device: str) -> bool:
    """Whether matrix products in bf16 are native: on a CPU without it they are up to 75 times slower than fp32."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = torch.backends.cpu.get_cpu_capability()
    return "AMX" in flags or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
