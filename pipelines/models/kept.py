"""The results that new videos can be classified by: what the settings ask for, best first."""

import pyarrow.compute as pc

from pipelines.evaluate.results import Wanted, headline_metric, wanted
from pipelines.run.job import Job
from pipelines.settings.recipes import MAIN


def kept(job: Job) -> list[Wanted]:
    """Return the results that get final classifiers (`classify.final`), best first."""
    ranked = best_first(job)
    if job.config.classify.final == "best":
        return _main(job, ranked)[:1] or ranked[:1]
    return ranked if job.config.classify.final == "all" else []


def best_first(job: Job) -> list[Wanted]:
    """Return the results in METRICS that score new videos, by their headline number; of equals the
    first one of METRICS comes first.
    """
    videos = job.manifest.filter(pc.greater_equal(job.manifest["fold"], 0))
    multi_label = (pc.max(pc.list_value_length(videos["labels"])).as_py() or 0) > 1
    headline = ("all", headline_metric(multi_label))
    values = {
        (row["encoder"], row["stream"], row["fusion"]): row["value"] or 0.0
        for row in job.store.read_table(job.metrics).to_pylist()
        if (row["split"], row["metric"]) == headline
    }
    pairs = {*job.pairs(), *(result.pair for result in job.scored_by_networks())}
    found = [
        result
        for result in wanted(job.singles, job.config.evaluate, job.fused)
        if result.key in values and pairs.issuperset(result.parts)
    ]
    return sorted(found, key=lambda result: -values[result.key])


def _main(job: Job, ranked: list[Wanted]) -> list[Wanted]:
    """Return the results that the recipe names as the one to take."""
    encoder, fusion = MAIN.get(job.config.recipe, ("", ""))
    return [
        result
        for result in ranked
        if result.fusion == fusion
        and {name.partition("@")[0] for name, _ in result.parts} == {encoder}
    ]
