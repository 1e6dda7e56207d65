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


def sum_of_squared_products(x, y):
    """Sum of (x_i . y_j)^2 over all pairs of rows: what bilinear pooling's inner product is."""
    return sum(sum(a * b for a, b in zip(row, other, strict=True)) ** 2 for row in x for other in y)


def tensor_sketch(bins, signs, num_features, x):
    """[P]: each row's two count sketches, convolved on a circle (Pham and Pagh 2013), summed."""
    total = np.zeros(num_features)
    for row in x:
        first, second = np.zeros(num_features), np.zeros(num_features)
        for c in range(len(row)):
            first[bins[0, c]] += signs[0, c] * row[c]
            second[bins[1, c]] += signs[1, c] * row[c]
        for i in range(num_features):
            for j in range(num_features):
                total[(i + j) % num_features] += first[i] * second[j]
    return total


def random_maclaurin(signs, x):
    """[P]: products of two random projections of each row (Kar and Karnick 2012), summed."""
    num_features = signs.shape[1]
    total = np.zeros(num_features)
    for row in x:
        for p in range(num_features):
            total[p] += (signs[0, p] @ row) * (signs[1, p] @ row) / math.sqrt(num_features)
    return total


def svm_objective(x, targets, classifier, c, loss):
    """[K]: 1/2 (|w|^2 + b^2) + c sum_i loss(y_i (w . x_i + b)) of each class, in float64."""
    weights, bias = (part.astype(np.float64) for part in (classifier.weights, classifier.bias))
    margins = (2.0 * targets - 1) * (x.astype(np.float64) @ weights.T + bias)
    losses = np.maximum(0, 1 - margins) ** (2 if loss == "squared_hinge" else 1)
    return 0.5 * (np.square(weights).sum(1) + bias**2) + c * losses.sum(0)


def multi_scale(vector_of, scales, pooling):
    """The image vector of descriptors of several scales (FK Eq. 1 and 2, Table 2), before the last
    normalisation; vector_of(rows) is the mean gradient of a list of descriptors.
    """
    if pooling == "nfk":
        return vector_of([row for scale in scales for row in scale])
    vectors = []
    for scale in scales:
        vector = vector_of(list(scale))
        vectors.append(vector / math.sqrt((vector**2).sum()))
    return np.concatenate(vectors) if pooling == "csf" else sum(vectors) / len(scales)


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
