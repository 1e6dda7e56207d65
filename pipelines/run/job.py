"""A run: the inputs and folders of its steps, and the marks of complete ones."""

from __future__ import annotations

import dataclasses
import functools
import logging

from pipelines.ledger import marks
from pipelines.ledger.marks import Fault, damage, publish_mark
from pipelines.run.folders import Folders
from pipelines.run.inputs import RETRIES
from pipelines.run.steps import STEPS
from pipelines.run.versions import FORMAT_VERSION, code_revision
from pipelines.settings.config import digest

log = logging.getLogger(__name__)

MOST_BYTES = 128 * 2**20
"""So much of the files of a step is looked into before it is left alone: a moment on a disk, and
seconds on object storage. Larger files show damage when they are read, and to the doctor.
"""


class Job(Folders):
    """Inputs, folders and marks of a run.

    Frozen except for what only the run itself finds out, see `leave_out` and `finish`.
    """

    def marks(self, step: str) -> list[str]:
        """Return the files that exist when a step is complete."""
        return STEPS[step].marks(self.current)

    def is_complete(self, step: str) -> bool:
        """Return whether every output of a step, for these inputs and settings, is there."""
        return all(marks.find(self.store, mark) for mark in self.marks(step))

    def is_sound(self, step: str) -> bool:
        """Return whether a step is complete, and its files are as its marks say."""
        return self.is_complete(step) and not self.faults(step)

    def digest(self, step: str) -> str:
        """Return twelve hex digits for the product of a step."""
        return digest(step, self.marks(step))

    def faults(self, step: str) -> list[Fault]:
        """Return which files of a step are not as its marks say.

        Seen from a listing are all that are gone, of another size, or of no step; inside are seen
        the smallest of MOST_BYTES together and those of the doctor's note, each once.
        """
        sizes, contents = functools.cache(self.store.sizes), self.contents(step)
        checked = self.store.each(
            lambda mark: marks.check(self.store, mark, contents[mark], sizes), list(contents)
        )
        # Several codebooks may need the same sample.
        faults = list(dict.fromkeys(fault for one in checked for fault in one.faults))
        left = {name: where for one in checked for name, where in one.left.items()}
        noted = marks.noted(self.store)
        names, total = [], 0
        for name, (_, size) in sorted(left.items(), key=lambda item: item[1][1]):
            total += size
            if name not in self._seen and (total <= MOST_BYTES or name in noted):
                names.append(name)
        found = self.store.each(lambda name: damage(name, self.store.read(name)), names)
        odd = {name: text for name, text in zip(names, found, strict=True) if text}
        self._seen.update(set(names) - odd.keys())
        return faults + [Fault(left[n][0], n, text, is_there=True) for n, text in odd.items()]

    @functools.cached_property
    def _seen(self) -> set[str]:
        """Return the files that this process has seen to be whole."""
        return set()

    def repair(self, step: str) -> None:
        """Remove what is not as the marks of a step say, and those marks: the step makes it
        again.
        """
        faults = self.faults(step)
        for fault in faults:
            log.warning("%s: %s: %s", step, self.store.uri(fault.file), fault.found)
            if fault.is_there:
                marks.remove(self.store, fault.file)
            marks.remove(self.store, fault.mark)
        if faults:
            log.warning(
                "%s: files that are damaged or of no step are removed, and what the step lacks is "
                "made again",
                step,
            )
        if left := set(marks.noted(self.store)):
            marks.note(self.store, left - {fault.file for fault in faults})

    def clips_came(self) -> None:
        """Name what follows by the videos that now have pictures."""
        self._forget("_brought_back", "networks", "combinations", "results")

    def finish(self, step: str) -> None:
        """Mark a step as complete, and remove what it replaces where that is cheap to make
        again.
        """
        if step == "describe":
            # What follows is named by which segments are whole.
            self._forget("_described_digest", "codebooks", "networks", "combinations", "results")
            if self.retries.decoder:
                # Before the mark: a killed run comes here again.
                passed = dataclasses.replace(self.retries, decoder="")
                self.store.publish_json(RETRIES, dataclasses.asdict(passed))
        for mark, contents in self.contents(step).items():
            if not marks.find(self.store, mark):
                publish_mark(self.store, mark, self.footer(step), contents)
        for table in STEPS[step].replaces:
            for folder in self.older(table):
                if self._split_of(folder) in (None, self.config.split.name):
                    marks.remove_folder(self.store, folder)

    def unmark(self, folder: str) -> None:
        """Remove the marks of a folder, before rows are published there.

        Their files are named by ids alone: those of a file that has changed may replace rows that
        other inputs count on.
        """
        marks.remove_all(self.store, folder)

    def _split_of(self, folder: str) -> str | None:
        """Return the named split that a folder was made for, "" where it has no name, None where it
        is unknown.

        Results of one named split stay while another one is run.
        """
        for name in self.store.files(folder)[:1]:
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
