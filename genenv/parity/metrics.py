"""Reference vectors of the metrics: FID and Inception Score on given features."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genenv.metrics.fid import Reference, fid
from genenv.metrics.frechet import Moments, moments
from genenv.metrics.inception_score import InceptionScore, inception_score
from genenv.parity.fixture import Fixture, Result, close

BATCH = 50


def check_fid(fixture: Fixture) -> Iterator[Result]:
    """The Frechet distance by AdaGen's formula in float32 and torch-fidelity's in float64, and the Inception Score.

    Features and logits come batch by batch, as in an evaluation.
    """
    io, results = fixture.tensors("io"), fixture.config["results"]
    fixture.ignore("amortize", "permutation")  # how it cuts batches; the scores depend on the shuffling
    mean, covariance = moments(io["ref_features"])
    yield close("reference mean", mean, io["ref_mu"], 1e-8)
    yield close("reference covariance", covariance, io["ref_sigma"], 1e-8)
    reference = Reference(io["ref_mu"], io["ref_sigma"], sha256="")
    for case, expected in results.items():
        if case == "isc":
            continue
        single, double = (
            _distance(io[f"{case}_features"], reference, t) for t in (torch.float32, torch.float64)
        )
        # AdaGen's solver gives NaN where the covariance is singular; the exact value stands then.
        adagen, fidelity = float(expected["adagen"]), expected["torch_fidelity"]
        zero = abs(fidelity) < 1e-3  # equal features: what is left is rounding
        if not math.isnan(adagen):
            yield _number(f"FID of {case}, adagen", single, adagen, 1e-3 if zero else 1e-4)
        yield _number(f"FID of {case}, torch-fidelity", double, fidelity, 1e-5 if zero else 1e-8)
    isc = results["isc"]
    mean, spread = inception_score(io["logits"])
    streamed = InceptionScore(len(io["logits"]), io["logits"].shape[1])
    for batch in io["logits"].split(BATCH):
        streamed.update(batch)
    yield _number("Inception Score, adagen", streamed.mean(), isc["adagen"], 1e-8)
    yield _number("Inception Score, torch-fidelity", mean, isc["torch_fidelity_mean"], 1e-8)
    yield _number("its standard deviation", spread, isc["torch_fidelity_std"], 1e-8)
    ordered, _ = inception_score(io["logits"], splits=4, shuffle=False)
    yield _number("Inception Score, 4 splits in order", ordered, isc["splits4_noshuffle"], 1e-8)


def _distance(features: Tensor, reference: Reference, dtype: torch.dtype) -> float:
    generated = Moments(features.shape[1], dtype)
    for batch in features.split(BATCH):
        generated.update(batch)
    return fid(generated, reference)


def _number(quantity: str, ours: float, theirs: float, tolerance: float) -> Result:
    return close(
        quantity,
        torch.tensor(ours, dtype=torch.float64),
        torch.tensor(theirs, dtype=torch.float64),
        tolerance,
    )
