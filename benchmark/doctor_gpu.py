"""The GPUs: what the driver says, and what torch, NCCL and faiss make of it. It starts CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from benchmark.doctor import REINSTALL, Asked, Finding, failed, ok, warning
from benchmark.runtime import visible_gpus

MATMUL_SIZE = 512
# Both add 512 products of order 1; with TF32, which rounds to 10 bits, they would differ by some 1e-2.
MATMUL_TOLERANCE = 1e-3


def gpus(asked: Asked) -> Iterator[Finding]:
    """What the driver says, and what torch, NCCL and faiss make of it."""
    promised = promised_gpus()
    if asked.device == "cpu" or not promised:
        if asked.device == "cuda":
            yield failed("GPU", "--device cuda, but no CUDA device is visible", "give --device cpu or auto")
        else:
            yield ok("GPU", "not asked for" if asked.device == "cpu" else "none: the CPU is used")
        return
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        why = "torch is built for the CPU alone" if torch.version.cuda is None else (
            f"torch (CUDA {torch.version.cuda}) cannot use it; driver {driver}"
        )  # fmt: skip
        yield failed(
            "GPU",
            f"{promised}, but {why}",
            f"a newer driver, or {REINSTALL}; nvidia-smi says whether the driver works. To use the CPU: "
            "CUDA_VISIBLE_DEVICES= before the command, and --device cpu",
        )
        return
    yield ok("driver", f"{driver}; torch is built for CUDA {torch.version.cuda}")
    for index in range(torch.cuda.device_count()):
        yield _one_gpu(index)
    if torch.distributed.is_nccl_available():
        yield ok("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield warning("NCCL", "missing: no cell can have several GPUs", REINSTALL)
    import faiss

    if faiss.get_num_gpus() < torch.cuda.device_count():
        yield warning(
            "faiss",
            f"it sees {faiss.get_num_gpus()} of {torch.cuda.device_count()} GPUs: codebooks are fitted on "
            "the CPU",
            REINSTALL,
        )
    else:
        yield ok("faiss", f"sees {faiss.get_num_gpus()} GPUs")


def promised_gpus() -> str:
    """What says that there is a GPU; empty if nothing does, or if none is to be used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name for name in map(str.strip, chosen.split(",")) if name not in ("", "-1")]
        return f"CUDA_VISIBLE_DEVICES is {chosen}" if names else ""
    nodes = visible_gpus()
    return f"there is /dev/nvidia{nodes[0]}" if nodes else ""


def _one_gpu(index: int) -> Finding:
    import torch

    of = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        has_bf16 = torch.cuda.is_bf16_supported()
    text = (
        f"{of.name}, {of.total_memory / 1e9:.0f} GB, compute capability {of.major}.{of.minor}, "
        f"{'with' if has_bf16 else 'without'} bf16"
    )
    difference = matmul_difference(f"cuda:{index}")
    if difference > MATMUL_TOLERANCE:
        return failed(
            f"GPU {index}",
            f"{text}; its product of two matrices is off by {difference:.1e}",
            "take it out with CUDA_VISIBLE_DEVICES, and have its memory tested",
        )
    if not has_bf16:
        return warning(f"GPU {index}", text, "run with --precision fp32")
    return ok(f"GPU {index}", f"{text}; a product of matrices agrees with the CPU's")


def matmul_difference(device: str) -> float:
    """The largest difference between a product of matrices of order 1 on `device` and in float64."""
    import torch

    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, generator=torch.Generator().manual_seed(0))
    product = (a.to(device) @ b.to(device)).cpu().double()
    return float((product - a.double() @ b.double()).abs().max())


def _driver() -> str:
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), "unknown")
