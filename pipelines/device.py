"""Where a worker computes: on the GPU that it was given, or on the CPU."""

import os
import socket

import torch

from pipelines.config import RunError
from pipelines.meter import Meter


def device(meter: Meter, allow_missing_gpu: bool) -> str:
    """cuda or cpu.

    Raises:
        RunError: in a step, Ray gave this process a GPU that torch does not see, and whose hours would be paid for nothing; the
            step is told.
    """
    if torch.cuda.is_available():
        return "cuda"
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if given in ("", "-1") or allow_missing_gpu or meter.counter is None:
        return "cpu"
    reason = (
        f"{socket.gethostname()} has the GPU {given} by Ray's account, but torch {torch.__version__} sees none; expected a "
        "driver that nvidia-smi speaks to and a torch for its CUDA; cluster.allow_missing_gpu=true takes the CPU instead"
    )
    meter.fail(reason)
    raise RunError(reason)
