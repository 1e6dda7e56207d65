"""The encodings and the EM step as plain float64 loops, written from the papers' equations.

Imports nothing from `encoders`: tests compare the two. `run_workers` stands in for a cluster.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def posteriors(weights, means, variances, x):
    """Posterior [n, K] and log-likelihood [n] of each descriptor under a diagonal mixture."""
    posterior = np.zeros((len(x), len(weights)))
    log_likelihood = np.zeros(len(x))
    for i in range(len(x)):
        log_joint = [
            math.log(weights[k])
            + sum(
                -((x[i, c] - means[k, c]) ** 2) / (2 * variances[k, c])
                - math.log(2 * math.pi * variances[k, c]) / 2
                for c in range(x.shape[1])
            )
            for k in range(len(weights))
        ]
        top = max(log_joint)
        log_likelihood[i] = top + math.log(sum(math.exp(value - top) for value in log_joint))
        posterior[i] = [math.exp(value - log_likelihood[i]) for value in log_joint]
    return posterior, log_likelihood


def em_step(weights, means, variances, x):
    """The next weights, means and variances, with no floor; variances about the new means."""
    posterior, _ = posteriors(weights, means, variances, x)
    mass = posterior.sum(0)
    new_means, new_variances = np.zeros_like(means), np.zeros_like(means)
    for k in range(len(weights)):
        for i in range(len(x)):
            new_means[k] += posterior[i, k] * x[i] / mass[k]
        for i in range(len(x)):
            new_variances[k] += posterior[i, k] * (x[i] - new_means[k]) ** 2 / mass[k]
    return mass / len(x), new_means, new_variances


def fisher_vector(weights, means, variances, x):
    """[2KC]: the mean blocks, then the sigma blocks (Perronnin et al. 2010)."""
    posterior, _ = posteriors(weights, means, variances, x)
    mean, sigma = np.zeros_like(means), np.zeros_like(means)
    for k in range(len(weights)):
        for i in range(len(x)):
            scaled = (x[i] - means[k]) / np.sqrt(variances[k])
            mean[k] += posterior[i, k] * scaled
            sigma[k] += posterior[i, k] * (scaled**2 - 1)
        mean[k] /= len(x) * math.sqrt(weights[k])
        sigma[k] /= len(x) * math.sqrt(2 * weights[k])
    return np.concatenate([mean.ravel(), sigma.ravel()])


def vlad(centroids, x, intra):
    """[KC]: residuals to the nearest centroid; signed square root and L2, or intra and L2."""
    blocks = np.zeros_like(centroids)
    for row in x:
        distances = [float(((row - centroid) ** 2).sum()) for centroid in centroids]
        nearest = distances.index(min(distances))
        blocks[nearest] += row - centroids[nearest]
    if intra:
        for k in range(len(blocks)):
            length = math.sqrt((blocks[k] ** 2).sum())
            blocks[k] = blocks[k] / length if length else 0
    else:
        blocks = np.sign(blocks) * np.sqrt(np.abs(blocks))
    return blocks.ravel() / math.sqrt((blocks**2).sum())


def principal_components(x, num_components):
    """Mean [C], components [P, C] with each one's largest loading positive, variances [P]."""
    mean = x.sum(0) / len(x)
    covariance = np.zeros((x.shape[1], x.shape[1]))
    for row in x:
        covariance += np.outer(row - mean, row - mean) / (len(x) - 1)
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances)[:num_components]
    components = vectors[:, order].T
    for component in components:
        component *= np.sign(component[np.abs(component).argmax()])
    return mean, components, variances[order]


def run_workers(num_workers, function):
    """[function(rank, all_reduce) of each rank], in threads; `all_reduce` sums over them."""
    barrier = threading.Barrier(num_workers, timeout=60)
    slots = [None] * num_workers

    def one(rank):
        def all_reduce(tensor):
            slots[rank] = tensor
            barrier.wait()
            total = sum(slots[1:], start=slots[0].clone())
            barrier.wait()
            return total

        try:
            return function(rank, all_reduce)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(one, range(num_workers)))
