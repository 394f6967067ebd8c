"""BG/NBD of the `lifetimes` wheel, run in an environment of its own: what a customer base says without any feature.

    .bench/lifetimes/bin/python benchmarks/scores_bgnbd.py IN.parquet OUT.parquet --cutoffs 500 530 --horizon 30

IN holds one row per user and active day (user_id, day: integer). For each cutoff a BG/NBD is fitted to the days before
it, and OUT gets user_id, cutoff, p_active and p_alive of everybody who was active before.
p_active: at least one active day in [cutoff, cutoff + horizon). A customer of BG/NBD leaves right after a purchase
only, so who is alive buys again at the rate of Gamma(r + x, alpha + T) before anything else can happen:
p_active = p_alive * (1 - ((alpha + T) / (alpha + T + horizon)) ** (r + x)), which is exact.
Source: Fader, Hardie, Lee, "Counting your customers" the easy way (Marketing Science, 2005).
"""

from __future__ import annotations

import argparse
import json
import warnings

import numpy as np
import pandas as pd
from lifetimes import BetaGeoFitter

PENALTIES = (0.0, 0.001, 0.01, 0.1)  # the first that converges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("days")
    parser.add_argument("out")
    parser.add_argument("--cutoffs", type=int, nargs="+", required=True)
    parser.add_argument("--horizon", type=int, required=True)
    arguments = parser.parse_args()
    days = pd.read_parquet(arguments.days)
    answers, fits = [], {}
    for cutoff in arguments.cutoffs:
        answer, fits[cutoff] = predict(days[days["day"] < cutoff], cutoff, arguments.horizon)
        answers.append(answer)
    pd.concat(answers).to_parquet(arguments.out, index=False)
    print(json.dumps(fits))


def predict(days: pd.DataFrame, cutoff: int, horizon: int) -> tuple[pd.DataFrame, dict[str, float]]:
    summary = days.groupby("user_id")["day"].agg(["min", "max", "nunique"])
    x, age = summary["nunique"].to_numpy() - 1, cutoff - summary["min"].to_numpy()
    t_x = (summary["max"] - summary["min"]).to_numpy()
    model, penalty = fit(x, t_x, age)
    r, alpha = model.params_["r"], model.params_["alpha"]
    alive = np.asarray(model.conditional_probability_alive(x, t_x, age), dtype=float)
    active = alive * (1 - ((alpha + age) / (alpha + age + horizon)) ** (r + x))
    answer = pd.DataFrame({"user_id": summary.index, "cutoff": cutoff, "p_active": active, "p_alive": alive})
    return answer, {"penalty": penalty, **{name: float(value) for name, value in model.params_.items()}}


def fit(x: np.ndarray, t_x: np.ndarray, age: np.ndarray) -> tuple[BetaGeoFitter, float]:
    for penalty in PENALTIES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = BetaGeoFitter(penalizer_coef=penalty).fit(x, t_x, age)
        except Exception as error:  # its ConvergenceError, or scipy's own on the way there
            print(f"penalty {penalty}: {error}")
            continue
        return model, penalty
    raise SystemExit("BG/NBD converged with none of its penalties")


if __name__ == "__main__":
    main()
