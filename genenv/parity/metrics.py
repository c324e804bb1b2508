"""Reference vectors of the metrics: FID and Inception Score on given features."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from genenv.metrics.frechet import frechet_distance, moments
from genenv.metrics.inception_score import inception_score
from genenv.parity.fixture import Fixture, Result, close


def check_fid(fixture: Fixture) -> Iterator[Result]:
    """The Frechet distance by AdaGen's formula in float32 and torch-fidelity's in float64, and the Inception Score."""
    io, results = fixture.tensors("io"), fixture.config["results"]
    mean, covariance = moments(io["ref_features"])
    yield close("reference mean", mean, io["ref_mu"], 1e-8)
    yield close("reference covariance", covariance, io["ref_sigma"], 1e-8)
    for case, expected in results.items():
        if case == "isc":
            continue
        distance = frechet_distance(*moments(io[f"{case}_features"]), io["ref_mu"], io["ref_sigma"])
        # AdaGen's solver gives NaN where the covariance is singular; the exact value stands then.
        adagen, fidelity = float(expected["adagen"]), expected["torch_fidelity"]
        zero = abs(fidelity) < 1e-3  # equal features: what is left is rounding
        if not math.isnan(adagen):
            yield _number(f"FID of {case}, adagen", distance, adagen, 1e-3 if zero else 1e-4)
        yield _number(f"FID of {case}, torch-fidelity", distance, fidelity, 1e-5 if zero else 1e-8)
    isc = results["isc"]
    mean, spread = inception_score(io["logits"])
    yield _number("Inception Score, adagen", mean, isc["adagen"], 1e-4)
    yield _number("Inception Score, torch-fidelity", mean, isc["torch_fidelity_mean"], 1e-8)
    yield _number("its standard deviation", spread, isc["torch_fidelity_std"], 1e-8)
    ordered, _ = inception_score(io["logits"], splits=4, shuffle=False)
    yield _number("Inception Score, 4 splits in order", ordered, isc["splits4_noshuffle"], 1e-8)


def _number(quantity: str, ours: float, theirs: float, tolerance: float) -> Result:
    return close(
        quantity,
        torch.tensor(ours, dtype=torch.float64),
        torch.tensor(theirs, dtype=torch.float64),
        tolerance,
    )
