"""The device of a worker: the GPU that it was given, or the CPU."""

import os
import socket

import torch

from pipelines.cluster.meter import Meter
from pipelines.errors import RunError


def cuda_or_cpu() -> str:
    """Return cuda where torch sees a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(meter: Meter, allow_missing_gpu: bool) -> str:
    """Return cuda or cpu.

    Raises:
        RunError: in a step, Ray assigned this process a GPU that torch cannot see, which would be
            paid for and not used. The step is told, and ends.
    """
    if cuda_or_cpu() == "cuda":
        return "cuda"
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if gpus in ("", "-1") or allow_missing_gpu or meter.counter is None:
        return "cpu"
    reason = (
        f"{socket.gethostname()} has the GPU {gpus} by Ray's account, but torch "
        f"{torch.__version__} sees none; expected a driver that nvidia-smi speaks to and a torch "
        "for its CUDA; cluster.allow_missing_gpu=true takes the CPU instead"
    )
    meter.fail(reason)
    raise RunError(reason)
