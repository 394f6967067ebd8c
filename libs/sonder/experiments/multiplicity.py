"""p-values for how many were looked at, by tea-tasting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Key = TypeVar("Key")


def benjamini_hochberg(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Adjusted so that rejecting those below q has a false discovery rate of q; undefined ones are left out."""
    import tea_tasting

    return _adjusted(p_values, lambda results: tea_tasting.adjust_fdr(results))


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Adjusted so that rejecting those below alpha has a chance of alpha to reject any true one."""
    import tea_tasting

    return _adjusted(
        p_values, lambda results: tea_tasting.adjust_fwer(results, arbitrary_dependence=True, method="bonferroni")
    )


def _adjusted(p_values: Mapping[Key, float | None], adjust: Any) -> dict[Key, float]:
    from tea_tasting.experiment import ExperimentResult

    known = [(key, value) for key, value in p_values.items() if value is not None]
    if not known:
        return {}
    results = {number: ExperimentResult({"p": {"pvalue": value}}) for number, (_, value) in enumerate(known)}
    adjusted = adjust(results)
    return {key: float(adjusted[number]["p"]["pvalue_adj"]) for number, (key, _) in enumerate(known)}
