"""A run: the inputs and folders of its steps, and the marks of complete ones."""

from __future__ import annotations

import dataclasses

from pipelines.run.folders import Folders
from pipelines.run.inputs import RETRIES
from pipelines.run.steps import STEPS
from pipelines.run.versions import FORMAT_VERSION, code_revision
from pipelines.settings.config import digest


class Job(Folders):
    """Inputs, folders and marks of a run.

    Frozen except for what only the run itself finds out, see `leave_out` and `finish`.
    """

    def marks(self, step: str) -> list[str]:
        """Return the files that exist when a step is complete."""
        return STEPS[step].marks(self.current)

    def is_complete(self, step: str) -> bool:
        """Return whether every output of a step, for these inputs and settings, is there."""
        return all(self.store.exists(mark) for mark in self.marks(step))

    def digest(self, step: str) -> str:
        """Return twelve hex digits for the product of a step."""
        return digest(step, self.marks(step))

    def finish(self, step: str) -> None:
        """Mark a step as complete, and remove what it replaces where that is cheap to make
        again.
        """
        if step == "describe":
            # What follows is named by which segments are whole.
            self._forget("_described_digest", "codebooks", "combinations", "results")
            if self.retries.decoder:
                # Before the mark: a killed run comes here again.
                passed = dataclasses.replace(self.retries, decoder="")
                self.store.publish_json(RETRIES, dataclasses.asdict(passed))
        for mark in self.marks(step):
            if not self.store.exists(mark):
                self.store.publish_json(mark, self.footer(step))
        for table in STEPS[step].replaces:
            for folder in self.older(table):
                if self._split_of(folder) in (None, self.config.split.name):
                    self.store.delete_folder(folder)

    def unmark(self, folder: str) -> None:
        """Remove the marks of a folder, before rows are published there.

        Their files are named by ids alone: those of a file that has changed may replace rows that
        other inputs count on.
        """
        for mark in self.store.marks(folder):
            self.store.delete(mark)

    def _split_of(self, folder: str) -> str | None:
        """Return the named split that a folder was made for, "" where it has no name, None where it
        is unknown.

        Results of one named split stay while another one is run.
        """
        # Classifiers have no footer; their scores are beside them.
        for name in self.store.files(folder.replace("classifiers/", "scores/", 1))[:1]:
            return self.store.footer(name).get("video_fisher.split", "")
        return None

    def footer(self, step: str) -> dict[str, str]:
        """Return the provenance for the footer of every file of a step."""
        config = self.config
        return {
            "video_fisher.format": FORMAT_VERSION,
            "video_fisher.step": step,
            "video_fisher.recipe": config.recipe,
            "video_fisher.config": digest(config),
            "video_fisher.weights": self.weights.identity,
            "video_fisher.backbone": (
                f"{config.describe.backbone} {','.join(config.describe.used_nodes)}"
            ),
            "video_fisher.decoder": config.decode.decoder,
            "video_fisher.sampling": repr(config.sampling),
            "video_fisher.split": config.split.name,
            "video_fisher.code": code_revision(),
        }
