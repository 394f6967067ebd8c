"""From a better model to a verdict: assignment, exposures, metrics, analysis, and estimates before any traffic."""
