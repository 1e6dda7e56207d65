"""Ray Train runs: started in a thread, ended by Ctrl-C like all else, with errors in one line."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

import ray.train
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.cluster import checkpoints, pools
from pipelines.cluster.pools import Growth
from pipelines.cluster.progress import ProgressLine
from pipelines.errors import RunError
from pipelines.ledger.accounts import Spent
from pipelines.storage.retries import StorageError

POLL_S = "0.25"
"""Seconds between two looks of Ray Train at its workers: its default of 2 s is as long as a
small codebook takes."""


def run_training(
    loop: Callable[[dict], None],
    setting: dict,
    *,
    name: str,
    step: str,
    total: int,
    workers: int,
    threads: int | None = None,
) -> Spent:
    """Do one Ray Train run, with a progress line.

    Args:
        setting: what `loop` is given, with `store` and `config`; `counter` and `meter` are added.
            `final`: the errors that would come again, ValueError where it is not there.
        total: how many results `loop` counts.
        threads: CPUs of a worker, and so its threads; None: all that its node can give it, or one
            where nodes come and go, since it is not known how large these are.

    Raises:
        RunError: `loop` raised one of the final errors. After any other Ray Train starts the
            workers again.
    """
    store, config = setting["store"], setting["config"]
    # Ray Train reads it on the driver, and hands it to its controller.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    resources = pools.capacity(config.cluster)
    use_gpu = resources.get("GPU", 0) >= workers
    cpus = resources.get("CPU", 1)
    share = threads or (1 if config.cluster.grows else pools.cpus_of_a_worker(workers, use_gpu))
    if cpus < workers * share + 1:
        share = cpus / (workers + 1)
    pool = pools.Pool(workers, share, int(use_gpu))
    line = ProgressLine(step, total, Growth({(step,): pool}, config.cluster.grow_warning_s))
    trainer = TorchTrainer(
        _guarded,
        train_loop_config=setting
        | {"counter": line.counter, "meter": line.meter, "step": step, "loop": loop},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": share} | ({"GPU": 1} if use_gpu else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=name,
            # Ray Train's own notes, of which nothing is read again: the checkpoints are ours, and
            # go through our store (`pipelines.cluster.checkpoints`).
            storage_path="/ray_train",
            storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    with line:
        _aside(trainer.fit)
    store.delete_folder(checkpoints.FOLDER)
    if error := line.failure():
        raise RunError(f"{step}: {error}")
    return line.spent


def _aside(function: Callable[[], object]) -> None:
    """Call function() in a thread, which Ctrl-C leaves behind: the process, or the one that caught
    it, ends its work.

    In the main thread Ray Train takes SIGINT and keeps it: the process would end without a word,
    with a code of its own, and `pipelines.run.lock` would not learn that the main thread has heard.
    """
    ended: Future[None] = Future()

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 (it is raised in the thread that waits)
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=run, name="ray.train", daemon=True).start()
    ended.result()


def _guarded(setting: dict) -> None:
    """Run the train loop on a Ray Train worker."""
    setting["meter"].joined(setting["step"])
    try:
        setting["loop"](setting)
    except StorageError:
        # A RunError, but the storage may answer the next workers.
        raise
    except setting.get("final", ValueError) as error:
        ray.get(setting["counter"].tell("fail", str(error)))
