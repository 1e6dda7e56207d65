"""The content of a run's report, collected from its tables; `pipelines.report.render` renders
it."""

import dataclasses
import itertools
import time

import pyarrow.compute as pc
import ray

from encoders.seal import BLANK, ENTRY, seal
from pipelines.evaluate.best import Best, Curve
from pipelines.evaluate.results import SINGLE, Estimate, headline_metric
from pipelines.evaluate.step import Evaluated
from pipelines.index.current_rows import outcome
from pipelines.ledger.accounts import Account, Spent
from pipelines.report.activations import accuracy_gains, activations, class_gains, flows
from pipelines.report.over_time import over_time
from pipelines.report.papers.full_length import TABLES_OF_RECIPES
from pipelines.report.papers.tables import BesidePaper, comparison
from pipelines.report.records import (
    ClassRow,
    Failure,
    Failures,
    Ledger,
    Report,
    Result,
    Solved,
    StepFact,
)
from pipelines.report.render import render
from pipelines.report.videos import neighbours, samples
from pipelines.run.job import Job
from pipelines.run.record import predicted
from pipelines.run.schema import read_record
from pipelines.run.steps import STEPS
from pipelines.settings.sections import Cluster

NUM_OWN_ROWS = 10
"""Own results beside a paper's table: the best ones."""


def publish(job: Job, evaluated: Evaluated) -> tuple[Account, Spent]:
    """Publish report/index.html of the evaluated results."""
    num_metrics = evaluated.metrics.num_rows
    account = Account("metrics", num_metrics, num_metrics, 0)
    counts = outcome(job, True)
    ledger = Ledger(counts.planned, counts.ok, counts.partial, counts.failed)
    write(job, evaluated, ledger, account, time.monotonic() - evaluated.started)
    return account, evaluated.spent


def write(
    job: Job, evaluated: Evaluated, ledger: Ledger, account: Account, evaluate_s: float
) -> None:
    """Collect the content of report/index.html and publish the page."""
    metrics, best = evaluated.metrics, evaluated.best
    rows = metrics.to_pylist()
    top_k = min(min(job.config.evaluate.top_k, default=1), len(best.classes))
    results = _results(job, rows, best.multi_label, top_k)
    recipe = job.config.recipe
    planned = predicted(job)
    report = Report(
        title=f"{recipe}: {job.manifest.num_rows} videos",
        recipe=recipe,
        weights=job.weights.description,
        num_videos=job.manifest.num_rows,
        num_classes=len(best.classes),
        ledger=ledger,
        multi_label=best.multi_label,
        chance=best.chance,
        top_k=top_k,
        warnings=_warnings(job),
        notes=_notes(job),
        facts=_facts(job),
        steps=_steps(job, account, evaluate_s, planned.get("steps", {})),
        results=tuple(results),
        per_class=_per_class(best, rows),
        precision_recall=best.precision_recall,
        confusion=best.confusion,
        curves=_curves(job),
        solved=_solved(job),
        failures=_failures(job),
        samples=samples(job, best, results),
        neighbours=neighbours(job, best, results),
        paper=comparison(job) if recipe in ("compare_encoders", "ucf101") else None,
        paper_tables=_paper_tables(job, rows, best.multi_label),
        activations=activations(job, rows),
        over_time=over_time(job, rows),
        flows=flows(job, rows),
        class_gains=class_gains(job, rows),
        accuracy_gains=accuracy_gains(job, rows),
        currency=job.config.cluster.currency,
        planned_for=planned.get("cluster", ""),
        provenance=job.footer("evaluate") | {"tables": job.store.root},
    )
    place = f'<head>\n<meta name="{ENTRY}" content="{BLANK}">'
    page = render(report).replace("<head>", place, 1)
    job.store.publish(job.report, seal(page.encode()))


def _results(job: Job, rows: list[dict], multi_label: bool, top_k: int) -> list[Result]:
    numbers = _by_result(rows)
    headline = headline_metric(multi_label)
    results = []
    for (encoder, stream, fusion), numbers_of_result in numbers.items():
        first = numbers_of_result["all", "accuracy"]
        mean = numbers_of_result.get(("mean", headline), {})
        results.append(
            Result(
                encoder=encoder,
                stream=stream,
                accuracy=_estimate(first),
                top_k=_estimate(numbers_of_result.get(("all", f"top_{top_k}"))),
                map=_estimate(numbers_of_result["all", "mAP"]),
                num_videos=first["num_videos"],
                output_dim=job.output_dim(encoder, stream) if fusion == SINGLE else None,
                fold_mean=mean.get("value"),
                fold_sd=mean.get("sd"),
                fusion="" if fusion == SINGLE else _fusion(fusion, first["weights"]),
                gain=_estimate(numbers_of_result.get(("all", f"{headline}_gain"))),
            )
        )
    return results


def _by_result(rows: list[dict]) -> dict[tuple[str, str, str], dict[tuple[str, str], dict]]:
    """Return {(encoder, stream, fusion): {(split, metric): row}} of the rows without a class."""
    rows_of_results: dict[tuple[str, str, str], dict[tuple[str, str], dict]] = {}
    for row in rows:
        if row["class"] is None:
            rows_of_result = rows_of_results.setdefault(
                (row["encoder"], row["stream"], row["fusion"]), {}
            )
            rows_of_result[row["split"], row["metric"]] = row
    return rows_of_results


def _estimate(row: dict | None) -> Estimate:
    return Estimate(row["value"], row["ci_low"], row["ci_high"]) if row else Estimate()


def _fusion(kind: str, weights: list[float]) -> str:
    """Return the fusion in words, "two_stream 0.40 : 0.60"; weights only if there are few enough to
    read."""
    return f"{kind} {' : '.join(f'{w:.2f}' for w in weights)}" if len(weights) <= 4 else kind


def _paper_tables(job: Job, rows: list[dict], multi_label: bool) -> tuple[BesidePaper, ...]:
    tables = TABLES_OF_RECIPES.get(job.config.recipe, ())
    headline = headline_metric(multi_label)
    numbers = _by_result(rows)
    ranked = sorted(numbers, key=lambda key: -(numbers[key]["all", headline]["value"] or 0.0))
    config = job.config
    classes = {name for labels in job.manifest["labels"].to_pylist() for name in labels}
    tested = next(iter(numbers.values()))["all", "accuracy"]["num_videos"]
    data = (
        f"{job.manifest.num_rows:,} videos, {tested:,} of them tested, {len(classes)} classes, "
        f"{job.protocol}; {config.describe.backbone} ({', '.join(config.describe.used_nodes)}; "
        f"{job.weights.description})"
    )
    by_class: dict[tuple[str, str, str], dict[tuple[str, str], dict]] = {}
    for row in rows:
        # FK Table 5 has a column for each class.
        if row["class"] is not None:
            own = by_class.setdefault((row["encoder"], row["stream"], row["fusion"]), {})
            own[row["split"], f"{row['metric']} {row['class']}"] = row
    beside_papers = []
    for table in tables:
        results = []
        for key in ranked[:NUM_OWN_ROWS]:
            encoder, stream, fusion = key
            name = f"{encoder} on {stream}" + ("" if fusion == SINGLE else f" ({fusion})")
            own = numbers[key] | by_class.get(key, {})
            results.append((name, tuple(_estimate(own.get(("all", m))) for m in table.metrics)))
        beside_papers.append(BesidePaper(table, tuple(results), data))
    return tuple(beside_papers)


def _warnings(job: Job) -> tuple[str, ...]:
    warnings = []
    if job.weights.is_random:
        warnings.append(
            "The network has seeded RANDOM filters, because no trained weights were given: the "
            "numbers show that the pipeline works, not what the method can do."
        )
    if job.left_out:
        warnings.append(f"Left out: {job.left_out}.")
    return tuple(warnings)


def _notes(job: Job) -> tuple[str, ...]:
    notes = []
    per_fold = sorted({b.encoder for b in job.codebooks if b.fold >= 0})
    if per_fold:
        notes.append(
            f"Codebooks that use labels ({', '.join(per_fold)}) were fitted once per fold, "
            "without the videos that the fold tests."
        )
    once = sorted({b.encoder for b in job.codebooks if b.fold < 0})
    if once and job.num_folds > 1:
        notes.append(
            f"Codebooks that use no labels ({', '.join(once)}) were fitted once, on descriptors "
            "of all labelled videos; classifiers never see the videos that they are tested on."
        )
    notes.append(
        "Metrics are over the tested videos of all folds together; videos that failed are not "
        f"tested. Intervals hold the middle 95 % of {job.config.evaluate.bootstrap:,} bootstrap "
        "draws over the tested videos: how much the choice of test videos matters, not that of "
        "training videos."
        if job.config.evaluate.bootstrap
        else "Metrics are over the tested videos of all folds together; videos that failed are not "
        "tested."
    )
    if job.fused:
        notes.append(
            "The combinations of classify.fusions choose weights on the training videos of a "
            "fold alone, by inner folds. A fusion's gain is over the part that turned out best "
            "on the tested videos, which nobody knows before: a gain of 0 is as good as having "
            "known it."
        )
    return tuple(notes)


def _sample(job: Job) -> str:
    numbers = sorted({job.sampled_frames(stream) for stream in job.described})
    said = f"about {' to '.join(f'{n:,}' for n in numbers)} frames per stream"
    return said if job.config.fit.num_frames else f"{said}, of every training video if they suffice"


def _facts(job: Job) -> tuple[tuple[str, str], ...]:
    config = job.config
    return (
        ("Network", f"{config.describe.backbone}, {', '.join(config.describe.used_nodes)}"),
        ("Weights", job.weights.description),
        ("Sampling", f"{config.sampling.policy} ({config.sampling})"),
        ("Descriptors", f"L2 {config.describe.scaling}, pyramid {config.describe.spp_levels}"),
        ("Data", _data(job)),
        ("Split", job.protocol),
        ("Codebook sample", _sample(job)),
        (
            "Classifier",
            f"one-vs-rest linear SVM, {config.classify.words}",
        ),
        ("Seed", str(config.run.seed)),
    )


def _data(job: Job) -> str:
    """Return the videos' folder, number, duration and size in words."""
    rows = job.store.read_table(job.videos, ["uri", "duration_s", "size_bytes"])
    ends = pc.min_max(rows["uri"]).as_py()
    parts = zip(ends["min"].split("/")[:-1], ends["max"].split("/"), strict=False)
    root = "/".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], parts))
    hours = (pc.sum(rows["duration_s"]).as_py() or 0.0) / 3600
    size_gb = (pc.sum(rows["size_bytes"]).as_py() or 0) / 1e9
    return (
        f"{rows.num_rows:,} videos of {root or 'several places'}, {hours:,.2f} hours, "
        f"{size_gb:,.2f} GB"
    )


def _steps(
    job: Job, account: Account, evaluate_s: float, planned: dict[str, dict]
) -> tuple[StepFact, ...]:
    record = (read_record(job.store) or {}).get("steps", {})
    resources = ray.cluster_resources()
    now = {"seconds": evaluate_s, **dataclasses.asdict(account)}
    now |= {"cpus": resources.get("CPU", 0.0), "gpus": resources.get("GPU", 0.0)}
    return tuple(
        dataclasses.replace(
            step_fact(name, step, job.config.cluster),
            predicted_s=planned.get(name, {}).get("wall_s", {}).get("value"),
        )
        for name in STEPS
        if (step := (record | {"evaluate": now}).get(name))
    )


def step_fact(name: str, step: dict, prices: Cluster) -> StepFact:
    """Return a step of run.json with its cost by the prices of the configuration."""
    seconds, cpus, gpus = step["seconds"], step.get("cpus"), step.get("gpus")
    if cpus is None:  # written by an earlier version
        return StepFact(name, seconds, None)
    spent = Spent.of_record(step).sentence(seconds)
    account = Account(*(step[field.name] for field in dataclasses.fields(Account)))
    core_s, gpu_s = seconds * cpus, seconds * gpus
    price = core_s * prices.price_per_cpu_hour + gpu_s * prices.price_per_gpu_hour
    has_price = prices.price_per_cpu_hour > 0 or prices.price_per_gpu_hour > 0
    cost = price / 3600 if has_price else None
    return StepFact(name, seconds, account, core_s, gpu_s, cost, spent)


def _per_class(best: Best, rows: list[dict]) -> tuple[ClassRow, ...]:
    return tuple(
        ClassRow(row["class"], _estimate(row), row["num_positives"])
        for row in rows
        if (row["encoder"], row["stream"], row["fusion"]) == best.key
        and (row["split"], row["metric"]) == ("all", "AP")
    )


def _curves(job: Job) -> tuple[Curve, ...]:
    curves = []
    for book in job.codebooks:
        name = f"{book.folder}/curves.parquet"
        if not job.store.exists(name):
            continue
        with job.store.open_parquet(name) as file:
            table = file.read()
        fold = "" if book.fold < 0 else f", fold {book.fold}"
        for quantity in pc.unique(table["quantity"]).to_pylist():
            part = table.filter(pc.equal(table["quantity"], quantity)).sort_by("step")
            stride = max(1, part.num_rows // 300)
            curves.append(
                Curve(
                    chart=f"{book.encoder}: {quantity}",
                    name=book.stream + fold,
                    x_label="step",
                    y_label=quantity,
                    x=tuple(part["step"].to_pylist()[::stride]),
                    y=tuple(part["value"].to_pylist()[::stride]),
                )
            )
    return tuple(curves)


def _solved(job: Job) -> tuple[Solved, ...]:
    columns = ["form", "c", "gap", "rounds", "is_solved"]
    summaries = []
    solved = [pair for pair, result in job.results.items() if "classifiers" in result.tables]
    for encoder, stream in solved:
        rows = job.store.read_table(job.classifiers(encoder, stream), columns)
        known = rows.filter(pc.is_valid(rows["gap"]))
        summaries.append(
            Solved(
                encoder=encoder,
                stream=stream,
                form=" and ".join(sorted(pc.unique(rows["form"]).to_pylist())),
                values_of_c=tuple(sorted(pc.unique(rows["c"]).to_pylist())),
                num_svms=rows.num_rows,
                num_trivial=rows.num_rows - known.num_rows,
                num_unsolved=pc.sum(pc.invert(rows["is_solved"])).as_py(),
                largest_gap=pc.max(known["gap"]).as_py(),
                rounds=pc.max(known["rounds"]).as_py(),
            )
        )
    return tuple(summaries)


def _failures(job: Job) -> Failures:
    columns = ["video_id", "stage", "status", "error_type", "error"]
    return Failures.of(
        Failure(**{name: row[name] or "" for name in columns})
        for file in job.store.files(job.failures)
        for rows in job.store.batches(file, columns)
        for row in rows.to_pylist()
    )
