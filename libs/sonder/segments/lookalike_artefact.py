"""A fitted lookalike as two files: arrays in lookalike.safetensors, numbers in lookalike.json."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from safetensors.numpy import load, save

from sonder.core.storage import Folder
from sonder.segments.lookalike import Combination, Lookalike
from sonder.segments.seed_classifier import SeedClassifier
from sonder.segments.seed_density import SeedDensity, Sphere

ARRAYS_FILE, NUMBERS_FILE = "lookalike.safetensors", "lookalike.json"


def save_lookalike(lookalike: Lookalike, folder: Folder) -> None:
    """Write both files; what is loaded gives the same scores."""
    density, sphere = lookalike.density, lookalike.density.sphere
    arrays = {
        "seeds": density.seeds_SM,
        "background": density.background_BM,
        "vector_mean": sphere.vector_mean_D,
        "feature_mean": sphere.feature_mean_F,
        "feature_scale": sphere.feature_scale_F,
        "weights": lookalike.classifier.weights_M,
    }
    numbers = {
        "share": sphere.share,
        "concentration": density.concentration,
        "intercept": lookalike.classifier.intercept,
        "strength": lookalike.classifier.strength,
        "combination": asdict(lookalike.combination),
        "held_out_auc": lookalike.held_out_auc,
        "num_seeds": lookalike.num_seeds,
    }
    (folder / ARRAYS_FILE).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    (folder / NUMBERS_FILE).write_json(numbers)


def load_lookalike(folder: Folder) -> Lookalike:
    """Read what `save_lookalike` wrote; NotFound if a file is absent."""
    arrays, numbers = load((folder / ARRAYS_FILE).read_bytes()), (folder / NUMBERS_FILE).read_json()
    sphere = Sphere(arrays["vector_mean"], arrays["feature_mean"], arrays["feature_scale"], numbers["share"])
    return Lookalike(
        density=SeedDensity(sphere, arrays["seeds"], arrays["background"], numbers["concentration"]),
        classifier=SeedClassifier(arrays["weights"], numbers["intercept"], numbers["strength"]),
        combination=Combination(**numbers["combination"]),
        held_out_auc=numbers["held_out_auc"],
        num_seeds=numbers["num_seeds"],
    )
