"""Speed of encoders and codebooks against other ways to the same result, on a CPU.

    python -m benchmarks.encoders [--quick] [--json FILE] [--threads 2]

Other libraries have the kernels of OpenBLAS that are the fastest here, and products the fastest way
that torch or NumPy has.

Letters: v videos of n descriptors, C channels, K components or centroids, L latents.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import (
    Options,
    Row,
    at_least,
    at_most,
    check_close,
    main,
    medians,
    optional,
    parser,
)
from benchmarks.products import with_best_blas
from encoders import matmul
from encoders.codebooks.gmm import (
    Gmm,
    assignment_statistics,
    fit_gmm,
    initial_gmm,
    mean_log_likelihood,
    statistics,
)
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.vlad import Vlad
from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.information import DiagonalInformation, KroneckerInformation

C, L, CELLS = 512, 255, 50
NO_FLOOR = 1e-9


def fv_vae_against_product(options: Options) -> list[Row]:
    """FV-VAE against a matrix product of the same FLOPs"""
    videos, frames = (4, 10) if options.quick else (8, 25)
    encoder, x = _fv_vae("diagonal"), _descriptors(videos * frames * CELLS, C)
    lengths = [frames * CELLS] * videos
    exact = encoder.encode_batch(x.double(), lengths)
    plain = _fv_vae("none")
    found, expected = plain.encode(x[:CELLS]), _autograd(x[:CELLS]).flatten() / CELLS
    check_close("FV-VAE against autograd", found, expected, 1e-4)
    check_close("FV-VAE in float32 and float64", encoder.encode_batch(x, lengths), exact, 1e-3)
    flops = 2 * len(x) * (C * C + 2 * C * L + C * (L + 1))
    row = _share_of_product(
        "FV-VAE video vectors",
        lambda: encoder.encode_batch(x, lengths),
        x,
        flops,
        0.85,
        "encoder C x C and C x L, decoder L x C, sums C x (L + 1); no others are counted",
        options,
    )
    return [replace(row, detail=row.detail | {"videos": videos, "descriptors": lengths[0], "L": L})]


def gmm_against_skimage(options: Options) -> list[Row]:
    """GMM-FV against scikit-image"""
    videos, frames = (4, 10) if options.quick else (8, 25)
    encoder, x = _gmm_fv(128), _descriptors(videos * frames * CELLS, C)
    lengths = [frames * CELLS] * videos
    fisher_vector = optional("skimage.feature").fisher_vector
    gmm = encoder.gmm
    theirs = optional("sklearn.mixture").GaussianMixture(128, covariance_type="diag")
    # In float32 as ours: with float64 parameters it would compute in float64.
    theirs.weights_, theirs.means_, theirs.covariances_ = (
        t.float().numpy() for t in (gmm.weights, gmm.means, gmm.variances)
    )
    theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)

    def skimage() -> list[np.ndarray]:
        return [fisher_vector(video.numpy(), theirs) for video in x.split(lengths)]

    # Its first block is the weights' gradient, and its sigma block has the opposite sign.
    _, mean, sigma = torch.from_numpy(np.stack(skimage())).tensor_split((128, 128 + 128 * C), 1)
    check_close(
        "GMM-FV against scikit-image",
        encoder.encode_batch(x, lengths),
        torch.cat([mean, -sigma], 1),
        1e-3,
    )
    seconds = medians(
        {"ours": lambda: encoder.encode_batch(x, lengths), "theirs": skimage},
        5 if options.quick else 9,
    )
    return [
        at_least(
            "GMM-FV video vectors",
            "scikit-image fisher_vector",
            seconds["theirs"] / seconds["ours"],
            1.5,
            seconds=seconds,
            videos=videos,
            descriptors=lengths[0],
            C=C,
            K=128,
            dtype="float32 on both sides",
        )
    ]


def gmm_against_product(options: Options) -> list[Row]:
    """GMM-FV against a matrix product of the same FLOPs"""
    videos, frames = (4, 10) if options.quick else (8, 25)
    encoder, x = _gmm_fv(128), _descriptors(videos * frames * CELLS, C)
    lengths = [frames * CELLS] * videos
    exact = encoder.encode_batch(x.double(), lengths)
    check_close("GMM-FV in float32 and float64", encoder.encode_batch(x, lengths), exact, 1e-4)
    row = _share_of_product(
        "GMM-FV video vectors",
        lambda: encoder.encode_batch(x, lengths),
        x,
        8 * len(x) * C * 128,
        0.8,
        "log-densities 2C x K and sums K x 2C; no others are counted",
        options,
    )
    return [
        replace(row, detail=row.detail | {"videos": videos, "descriptors": lengths[0], "K": 128})
    ]


def vlad_against_faiss(options: Options) -> list[Row]:
    """VLAD against faiss and numpy"""
    videos, frames = (4, 10) if options.quick else (8, 25)
    lengths, x = [frames * CELLS] * videos, _descriptors(videos * frames * CELLS, C)
    centroids = x[:: len(x) // 256][:256] + 0.1 * _descriptors(256, C)
    encoder = Vlad(centroids, normalisation="none")
    faiss = optional("faiss")
    faiss.omp_set_num_threads(options.threads)
    index = faiss.IndexFlatL2(C)
    index.add(centroids.numpy())

    def theirs() -> Tensor:
        vectors = np.zeros((videos, 256, C), np.float32)
        for sums, video in zip(vectors, x.split(lengths), strict=True):
            cell = index.search(video.numpy(), 1)[1][:, 0]
            np.add.at(sums, cell, video.numpy() - centroids.numpy()[cell])
            sums /= len(video)
        return torch.from_numpy(vectors).flatten(1)

    check_close("VLAD against faiss and numpy", encoder.encode_batch(x, lengths), theirs(), 1e-4)
    seconds = medians(
        {"ours": lambda: encoder.encode_batch(x, lengths), "theirs": theirs},
        5 if options.quick else 9,
    )
    return [
        at_least(
            "VLAD video vectors",
            "faiss assignment and numpy.add.at",
            seconds["theirs"] / seconds["ours"],
            2.0,
            seconds=seconds,
            videos=videos,
            descriptors=lengths[0],
            C=C,
            K=256,
            dtype="float32",
        )
    ]


def em_against_sklearn(options: Options) -> list[Row]:
    """EM against scikit-learn"""
    num, width, components, rounds = (
        (20_000, 64, 64, 4) if options.quick else (200_000, 128, 128, 10)
    )
    x = _mixture_draws(num, width, components)
    centroids = x[:components]
    start = initial_gmm(centroids, assignment_statistics(centroids, x), NO_FLOOR)
    mixture = optional("sklearn.mixture").GaussianMixture

    def ours() -> Gmm:
        return fit_gmm(
            x, centroids, max_iterations=rounds, tolerance=-np.inf, variance_floor=NO_FLOOR
        )

    def theirs(points: np.ndarray) -> Gmm:
        dtype = points.dtype
        fitted = mixture(
            components,
            covariance_type="diag",
            tol=0,
            reg_covar=0,
            max_iter=rounds,
            weights_init=start.weights.numpy().astype(dtype),
            means_init=start.means.numpy().astype(dtype),
            precisions_init=(1 / start.variances).numpy().astype(dtype),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge: the rounds are counted
            fitted.fit(points)
        learnt = fitted.weights_, fitted.means_, fitted.covariances_
        return Gmm(*(torch.from_numpy(values).double() for values in learnt))

    double = x.double().numpy()
    likelihoods = [mean_log_likelihood(statistics(gmm, x)) for gmm in (ours(), theirs(double))]
    check_close(
        "EM against scikit-learn", *map(torch.tensor, likelihoods), 1e-4 / abs(likelihoods[1])
    )
    seconds = medians({"ours": ours, "theirs": lambda: theirs(double)}, 3)
    begin = time.perf_counter()
    theirs(x.numpy())
    return [
        at_least(
            "GMM EM from the same start",
            "scikit-learn GaussianMixture (diag)",
            seconds["theirs"] / seconds["ours"],
            3.0,
            seconds=seconds | {"scikit-learn in float32": time.perf_counter() - begin},
            mean_log_likelihood={"ours": likelihoods[0], "theirs": likelihoods[1]},
            descriptors=num,
            C=width,
            K=components,
            rounds=rounds,
            dtype="descriptors float32 for ours, float64 for theirs; both compute in float64",
            note="each side with all it does: ours assigns the descriptors to the centroids first, "
            "theirs has an E step more at the end",
        )
    ]


def em_on_two_workers(options: Options) -> list[Row]:
    """EM on two workers of one thread each, against one"""
    num, width, components, rounds = (
        (20_000, 64, 64, 4) if options.quick else (200_000, 128, 128, 4)
    )
    repetitions = 3 if options.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, num, width, components, rounds, repetitions)
        torch.multiprocessing.spawn(_em_worker, args=arguments, nprocs=2)
        found = torch.load(f"{folder}/result", weights_only=True)
    for name in ("weights", "means", "variances"):
        check_close(f"EM on two workers: {name}", found["two"][name], found["one"][name], 1e-6)
    seconds = found["seconds"]
    return [
        at_least(
            "GMM EM on 2 workers of one thread",
            "1 worker of one thread",
            seconds["one"] / seconds["two"],
            1.7,
            seconds=seconds,
            descriptors=num,
            C=width,
            K=components,
            rounds=rounds,
            workers="processes, all_reduce by gloo",
        )
    ]


def whitening_against_encoding(options: Options) -> list[Row]:
    """Kronecker whitening of a vector against the encoding itself"""
    frames = 10 if options.quick else 25
    encoder, x = _fv_vae("kronecker"), _descriptors(frames * CELLS, C)
    gradient = encoder.accumulate(x).sums / len(x)
    information = encoder.information
    left, right = (_inverse_root(m, information.damping) for m in (information.a, information.b))
    check_close("Kronecker whitening", information.whiten(gradient), left @ gradient @ right, 1e-8)
    seconds = medians(
        {
            "whitening": lambda: information.whiten(gradient),
            "encoding": lambda: encoder.accumulate(x),
        },
        9 if options.quick else 31,
    )
    return [
        at_most(
            "Kronecker whitening of a video vector",
            "the encoding itself",
            seconds["whitening"] / seconds["encoding"],
            1.0,
            seconds=seconds,
            descriptors=len(x),
            C=C,
            L=L,
            dtype="descriptors float32, whitening float64",
        )
    ]


CASES = (
    fv_vae_against_product,
    gmm_against_skimage,
    gmm_against_product,
    vlad_against_faiss,
    em_against_sklearn,
    em_on_two_workers,
    whitening_against_encoding,
)


def _share_of_product(
    measure: str,
    run: Callable[[], Tensor],
    x: Tensor,
    flops: int,
    target: float,
    counted: str,
    options: Options,
) -> Row:
    """What share of the best rate of one [n, C] x [C, N] product `run` reaches, N giving it its
    FLOPs."""
    columns = round(flops / (2 * x.numel()))
    right = torch.randn(x.shape[1], columns)
    out = torch.empty(len(x), columns)

    def product() -> None:
        with matmul.fastest():
            torch.mm(x, right, out=out)

    sides = {
        "ours": run,
        "product": product,
        "torch.mm": lambda: torch.mm(x, right, out=out),
        "NumPy": lambda: np.matmul(x.numpy(), right.numpy(), out=out.numpy()),
    }
    seconds = medians(sides, 7 if options.quick else 15)
    return at_least(
        measure,
        "the best float32 product of the same FLOPs",
        min(taken for side, taken in seconds.items() if side != "ours") / seconds["ours"],
        target,
        seconds=seconds,
        C=x.shape[1],
        GFLOP=flops / 1e9,
        product=f"of {list(x.shape)} and {list(right.shape)}, the result in place",
        FLOPs=f"2 a multiplication and addition: {counted}",
    )


def _em_worker(
    rank: int, folder: str, num: int, width: int, components: int, rounds: int, repetitions: int
) -> None:
    """One of two processes: in turn, rank 0 fits all descriptors alone, and both fit half each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    x = _mixture_draws(num, width, components)
    centroids = x[:components].clone()
    options = {"max_iterations": rounds, "tolerance": -np.inf, "variance_floor": NO_FLOOR}

    def all_reduce(packed: Tensor) -> Tensor:
        torch.distributed.all_reduce(packed)
        return packed

    def one() -> Gmm | None:
        return None if rank else fit_gmm(x, centroids, **options)

    def two() -> Gmm:
        return fit_gmm(x.chunk(2)[rank], centroids, all_reduce=all_reduce, **options)

    results = {"one": one(), "two": two()}
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(repetitions):
        for name, fit in (("one", one), ("two", two)):
            torch.distributed.barrier()
            begin = time.perf_counter()
            fit()
            torch.distributed.barrier()
            seconds[name].append(time.perf_counter() - begin)
    if rank == 0:
        learnt = {name: vars(gmm) for name, gmm in results.items()}
        times = {name: median(values) for name, values in seconds.items()}
        torch.save(learnt | {"seconds": times}, f"{folder}/result")
    torch.distributed.destroy_process_group()


def _autograd(x: Tensor) -> Tensor:
    """The gradient [C, L + 1] of the loss of descriptors [n, C] in the decoder, by torch."""
    weights = _network()
    with torch.no_grad():
        hidden = functional.relu(
            functional.linear(x, weights["encoder.0.weight"], weights["encoder.0.bias"])
        )
        z = functional.linear(hidden, weights["encoder.1.weight"], weights["encoder.1.bias"])
    decoder = [weights[f"decoder.{name}"].detach().requires_grad_() for name in ("weight", "bias")]
    mean = functional.relu(functional.linear(z, *decoder))
    loss = ((x - mean).square() / weights["var_x"]).sum() / 2  # and what no gradient comes from
    by_weight, by_bias = torch.autograd.grad(loss, decoder)
    return torch.cat([by_weight, by_bias[:, None]], 1)


def _fv_vae(information: str) -> FvVae:
    """A network as DQ's with random weights; with an information, the default normalisation."""
    if information == "none":
        return FvVae(_network(), normalisation="none")
    if information == "diagonal":
        return FvVae(_network(), DiagonalInformation(_random(C, L + 1).double().square(), 0.01))
    a, b = (_random(2 * size, size).double() for size in (C, L + 1))
    return FvVae(_network(), KroneckerInformation(a.T @ a, b.T @ b, 0.01))


@cache
def _network() -> dict[str, Tensor]:
    return {
        "encoder.0.weight": _random(C, C) / C**0.5,
        "encoder.0.bias": _random(C) / 10,
        "encoder.1.weight": _random(L, C) / C**0.5,
        "encoder.1.bias": _random(L) / 10,
        "decoder.weight": _random(C, L) / L**0.5,
        "decoder.bias": _random(C) / 10,
        "var_x": 0.5 + _random(C).square(),
    }


def _gmm_fv(num_components: int) -> GmmFisher:
    """Components that share their descriptors, so that the posteriors are not all 0 and 1."""
    weights = 0.2 + torch.rand(num_components, generator=torch.Generator().manual_seed(1)).double()
    means = 0.6 + 0.1 * _random(num_components, C).double()
    variances = 1.0 + 0.1 * _random(num_components, C).double().abs()
    # Rounded to float32, which the other side computes with.
    parameters = (weights / weights.sum(), means, variances)
    return GmmFisher(Gmm(*(each.float().double() for each in parameters)), normalisation="none")


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _descriptors(num: int, width: int) -> Tensor:
    """Not negative and about half of them zero, as after a ReLU."""
    return _random(num, width).relu()


def _mixture_draws(num: int, width: int, num_components: int) -> Tensor:
    """From a mixture whose components overlap, in random order."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(num_components, width, generator=generator) / 2
    deviations = 0.3 + torch.rand(num_components, width, generator=generator)
    which = torch.randint(num_components, (num,), generator=generator)
    noise = torch.randn(num, width, generator=generator)
    return means[which] + deviations[which] * noise


def _inverse_root(matrix: Tensor, damping: float) -> Tensor:
    """(M + damping mean_eigenvalue(M) I)^(-1/2) by a Newton-Schulz iteration."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    damped = matrix + damping * matrix.trace() / len(matrix) * identity
    norm = damped.norm()
    y, z = damped / norm, identity
    for _ in range(40):
        half = (3 * identity - z @ y) / 2
        y, z = y @ half, half @ z
    return z / norm.sqrt()


if __name__ == "__main__":
    given = parser(__doc__.splitlines()[0]).parse_args()
    with_best_blas(given.threads)
    sys.exit(main(CASES, given))
