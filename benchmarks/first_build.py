"""The whole build on every log that Sonder names, with popularity and item-kNN beside the encoder.

    python -m benchmarks.first_build --out /tmp/first-build [--only online_retail ml_1m beauty cdnow synthetic]

Runs `sonder build` and `sonder evaluate --json` as a user would, prints one Markdown table a log and ends with one
JSON line. Quality is deterministic by seed on one machine; times are single runs on a shared one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

SHARED = Path(__file__).parents[2] / "shared" / "data"
SCORES = [
    {"name": "buy_30d", "action": "buy", "within_days": 30},
    {"name": "churn_60d", "churn": True, "within_days": 60},
]
LOGS: dict[str, dict[str, Any]] = {
    "online_retail": {
        "events": {
            "path": str(SHARED / "online_retail.parquet"),
            "columns": {
                "user_id": "CustomerID",
                "item_id": "StockCode",
                "timestamp": "InvoiceDate",
                "value": "UnitPrice",
            },
            "action": "buy",
        },
        "evaluation": {"protocol": "temporal", "test_days": 30},
        "scores": SCORES,
    },
    "online_retail_cancellations": {
        "events": {"path": str(SHARED / "online_retail.parquet"), "format": "online_retail"},
        "evaluation": {"protocol": "temporal", "test_days": 30},
        "scores": SCORES,
    },
    "ml_1m": {
        "events": {"path": "auto", "format": "movielens"},
        "evaluation": {"protocol": "leave_one_out"},
    },
    "beauty": {
        "events": {"path": str(SHARED / "beauty.txt"), "format": "sequences", "action": "review"},
        "evaluation": {"protocol": "leave_one_out"},
    },
    "cdnow": {
        "events": {"path": "auto", "format": "cdnow"},
        "evaluation": {"protocol": "temporal", "test_days": 60},
        "scores": [
            {"name": "buy_60d", "action": "buy", "within_days": 60},
            {"name": "churn_90d", "churn": True, "within_days": 90},
        ],
    },
    "synthetic": {"synth": {"users": 50_000, "days": 90, "seed": 7}},
}
METRICS = ("hr_at_10", "ndcg_at_10", "hr_at_10_unseen", "ndcg_at_10_unseen", "p90_coverage_at_10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for workspaces and results")
    parser.add_argument("--only", nargs="+", choices=list(LOGS), default=list(LOGS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to sonder")
    arguments = parser.parse_args()
    results = {name: run_log(name, arguments.out / name, arguments.overrides) for name in arguments.only}
    print(json.dumps(results))


def run_log(name: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    config_file = write_config(name, folder)
    sets = [argument for override in overrides for argument in ("--set", override)]
    started = time.perf_counter()
    sonder("build", "--config", str(config_file), *sets)
    seconds = time.perf_counter() - started
    sonder("evaluate", "--config", str(config_file), "--json", str(folder / "metrics.json"), *sets)
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    print_table(name, metrics, seconds)
    return {"seconds": round(seconds, 1), **metrics}


def write_config(name: str, folder: Path) -> Path:
    log = LOGS[name]
    if "synth" in log:
        world = log["synth"]
        options = [argument for key, value in world.items() for argument in (f"--{key}", str(value))]
        sonder("synth", *options, "--out", str(folder / "world"))
        config = yaml.safe_load((folder / "world" / "sonder.yaml").read_text(encoding="utf-8"))
    else:
        config = dict(log)
    config["workspace"] = str(folder / "workspace")
    (folder / "sonder.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "sonder.yaml"


def sonder(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], check=True, stdout=sys.stderr)


def print_table(name: str, metrics: dict[str, float], seconds: float) -> None:
    counts = " ".join(
        f"{key} {metrics.get(f'data.{key}', 0):,.0f}" for key in ("events", "users", "items", "quarantined")
    )
    print(f"\n## {name}\n\n{counts}; build {seconds:.0f} s\n")
    print("| model | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for model in ("encoder", "item_knn", "popularity"):
        values = [metrics.get(f"retrieval.{model}.{metric}") for metric in METRICS]
        print(f"| {model} | " + " | ".join("·" if value is None else f"{value:.4f}" for value in values) + " |")
    scores = sorted({key.split(".")[1] for key in metrics if key.startswith("scores.")})
    for score in scores:
        fields = {key.rsplit(".", 1)[1]: value for key, value in metrics.items() if key.startswith(f"scores.{score}.")}
        print(f"\n{score}: " + ", ".join(f"{key} {value:.4f}" for key, value in fields.items() if value is not None))
    truth = {key: value for key, value in metrics.items() if key.startswith("truth.")}
    if truth:
        print("\n" + ", ".join(f"{key} {value:.4f}" for key, value in truth.items()))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
