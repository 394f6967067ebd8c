"""SIGKILL whole nodes of a cluster in every step of a build and while serving: what is lost, and when is it whole?

    make node-kill
    python -m benchmarks.node_kill [--log-users 4000] [--build-users 800] [--keep FOLDER] [--report FILE]
    python -m benchmarks.node_kill --serve WORKSPACE

Real raylets, each in a network namespace with an address of its own (`benchmarks.namespaces`; root and iproute2), token
authentication on. First `sonder submit prepare` of a larger log and `sonder submit build` of a smaller one, whose nodes
are killed (`node_kill_build`), beside the same on one node; then that release behind `serve deploy`, whose nodes are
killed under load (`node_kill_serving`).
Prints a Markdown report and one JSON line. Exit status 1 where a file or a metric differs from the undisturbed build's,
a stored read through a surviving door was not 200, or an accepted event is missing or counts twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.namespaces import why_not
from benchmarks.node_kill_build import report_build
from benchmarks.node_kill_serving import report_serving

BUILD_COLUMNS = {
    "killed in": "step",
    "how": "how",
    "worker": "node",
    "its processes": "processes",
    "did that step's work": "was_working",
    "taken for dead after s": "noticed_s",
    "step ended s after the kill": "to_end_s",
    "step, whole s": "step_s",
    "on one node, undisturbed s": "undisturbed_s",
}
SERVING_COLUMNS = {
    "killed": "name",
    "how": "how",
    "on": "node",
    "processes": "processes",
    "taken for dead after s": "noticed_s",
    "whole without it after s": "healed_s",
    "node back after s": "back_s",
    "stored reads at other doors": "reads",
    "not 200": "reads_failed",
    "longest s": "longest_s",
    "reads at its own door": "own_door_reads",
    "failed there": "own_door_failed",
    "event batches repeated": "batches_repeated",
}


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_shown(row[name]) for name in columns.values())} |" for row in rows]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else f"{value}"


def report_of_build(built: dict[str, Any]) -> str:
    """What happened to a build, for people."""
    different = ", ".join(built["different"]) or "none"
    return f"""## While building

{table(built["kills"], BUILD_COLUMNS)}

Files compared with the undisturbed build's, byte for byte: {built["files_compared"]}, and every metric.
Different: {different}.
Releases: {built["releases"]}; left in `.staging`: {built["left_in_staging"] or "nothing"}.
"""


def report_of_serving(served: dict[str, Any]) -> str:
    """What happened to an application, for people."""
    wrong = served["users_with_lost_or_repeated_events"] or "none"
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"""## While serving

{table(served["kills"], SERVING_COLUMNS)}

Ended early: {served["stopped"] or "no"}.

Over the whole run {served["reads"]:,} stored reads at all doors, {served["reads_failed"]:,} of them without a 200,
those at the doors of dead nodes included. {served["events_accepted"]:,} events accepted,
{served["events_in_log"]:,} in the log; users whose stored profile has another number: {wrong}.

Load averages of the machine at the end: {load}; {os.cpu_count()} cores.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-users", type=int, default=4_000)
    parser.add_argument("--build-users", type=int, default=800)
    parser.add_argument("--serve", type=Path, help="build nothing; serve the release of this workspace")
    parser.add_argument("--keep", type=Path, help="work here, and keep what was made; a short path")
    parser.add_argument("--report", type=Path, help="append the report to this file too")
    options = parser.parse_args()
    missing = why_not()
    if missing is not None:
        raise SystemExit(missing)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the machines too
    built: dict[str, Any] | None = None
    folder = options.keep or Path(tempfile.mkdtemp(prefix="nk"))
    try:
        if options.serve is None:
            built = report_build(folder / "b", log_users=options.log_users, build_users=options.build_users)
        served = report_serving(folder / "s", str(options.serve or folder / "b" / "there-build"))
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    told = "\n".join([*([] if built is None else [report_of_build(built)]), report_of_serving(served)])
    print(told)
    if options.report is not None:
        with options.report.open("a", encoding="utf-8") as file:
            file.write(f"\n{told}")
    failed = sum(kill["reads_failed"] for kill in served["kills"])
    line = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "served_kills": len(served["kills"]),
        "reads_at_surviving_doors": sum(kill["reads"] for kill in served["kills"]),
        "reads_failed": failed,
        "events_accepted": served["events_accepted"],
        "events_in_log": served["events_in_log"],
        "users_with_lost_or_repeated_events": len(served["users_with_lost_or_repeated_events"]),
    }
    if built is not None:
        line |= {
            "builds_killed": len(built["kills"]),
            "files_compared": built["files_compared"],
            "files_different": len(built["different"]),
        }
    print(json.dumps(line))
    lost = served["users_with_lost_or_repeated_events"] or served["events_in_log"] != served["events_accepted"]
    is_other = built is not None and (built["different"] or built["releases"] != 1)
    if is_other or failed or lost or served["stopped"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
