"""Event files of TensorBoard: `FOLDER/<step>-<digest>/`, a scalar for each series."""

from __future__ import annotations

from torch.utils.tensorboard import SummaryWriter

from pipelines.track.tracker import Finished


def write(where: str, finished: Finished) -> None:
    """Write the series of a step; those of an earlier try are no longer shown."""
    folder = f"{where}/{finished.step}-{finished.digest}"
    with SummaryWriter(folder, purge_step=0) as events:
        for name, points in finished.series.items():
            for step, value in points:
                events.add_scalar(name, value, step)
        rows = "\n".join(f"| {name} | {value} |" for name, value in finished.settings.items())
        events.add_text("settings", f"| run | {finished.run} |\n|---|---|\n{rows}")
