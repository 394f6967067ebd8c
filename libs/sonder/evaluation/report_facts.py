"""The sentences of the report: what the numbers say, in words that need no training, and never more than they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sonder.evaluation.report_content import DataFacts, ReportContent, RetrievalFacts, ScoreFacts

MODEL_NAMES = {"encoder": "Encoder", "popularity": "Popularity", "item_knn": "Item-kNN"}
REASONS = {
    "unparsable": "not a row of the file's format",
    "missing_id": "no item or no action",
    "bad_timestamp": "a time that cannot be read, before 1990 or in the future",
    "unknown_type": "a field of the wrong kind",
    "overlong_id": "an id that is too long",
    "duplicate_event_id": "the same event once more",
    "anonymous": "no user: belongs to nobody's history",
    "bot": "its user had more events in a day than a person can have",
}
CLUSTER_REASONS = {
    "stable": "The number is the largest whose gain over a cloud without groups is within one standard error of the "
    "best.",
    "continuum": "No number comes back better than in a cloud without groups: these users are a continuum, and the "
    "clusters are sections of it.",
    "parent": "The number is that of the parent release, which still holds: within two standard errors of the best.",
    "configured": "The number is given in the configuration.",
}
CLUSTER_STARTS = {
    "kept": "They start where the users of its clusters lie now.",
    "number_changed": "Its number of clusters no longer holds, so they start afresh.",
    "parent_fits_worse": "Its clusters fit clearly worse than fresh ones, so they start afresh.",
    "no_parent": "None of its users is here, so they start afresh.",
}
GLOSSARY = (
    ("Encoder", "The model that reads a user's events in order and places the user among the items, as a vector."),
    ("Embedding", "That vector. Users who behave alike lie close together, and close to what they want next."),
    ("HR@10", "Hit rate. The share of users who went on to choose at least one of ten suggested items."),
    ("NDCG@10", "As HR@10, but a hit at the top of the ten counts for more than one at the end. 1 is perfect."),
    ("P90 coverage@10", "The share of the catalogue that fills 90 % of all suggestions. Near 0: all see the same few."),
    ("New items", "What a user already had is taken out of the suggestions and out of what counts as a hit."),
    ("Popularity", "A baseline: everybody gets the most chosen items. What any model must beat to be worth running."),
    ("Item-kNN", "A baseline: items that are often chosen by the same people. Simple, and hard to beat."),
    ("Leave one out", "Protocol: each user's last event is hidden and has to be found among all items."),
    ("Temporal", "Protocol: the log is cut on one day. The model knows what was before, the test is what came after."),
    ("Cutoff", "The moment up to which a model may read. Nothing after it goes into a prediction."),
    ("Cold user", "A user without any history at the cutoff. Counted apart, since there is nothing to predict from."),
    ("Hide rate@10", "The share of what users went on to refuse that had been among their ten suggestions."),
    ("Hide lift@10", "Hide rate over recall. 1: blind to what will be refused; below 1: what is wanted comes first."),
    ("Recall@10", "The share of what users went on to choose that had been among their ten suggestions."),
    ("Base rate", "How often something came true among all users. The score of someone who knows nothing else."),
    ("AUC", "Take one user for whom it came true and one for whom not: how often the first has the higher score."),
    ("PR-AUC", "How well the score finds those for whom it comes true, over all depths. Compare with the base rate."),
    ("ECE", "Calibration error: how far the promised chances lie from what happened, on average. 0 is perfect."),
    ("Interest", "A group of a user's items that belong together, shown by its most typical item, the medoid."),
    ("Cluster", "Users whose vectors lie close together, named by what is more common among them than among all."),
    ("Lift", "How many times more common a trait is inside a cluster than among all, by mean shares over users."),
    ("Stability", "Cluster two halves of a sample apart: how far they agree on a third part (adjusted Rand index)."),
    ("Lifecycle", "Where a user stands: new, core, casual, marginal, dormant, resurrected or still unknown (cold)."),
    ("Quarantine", "Rows that are not usable events. They are kept with their reason, nothing is dropped in silence."),
    ("Release", "All results of one build, which belong together and never change."),
)  # fmt: skip
SLICES = (  # key, title, first column, second column, what is measured
    (
        "hr_at_10_by_knowledge",
        "By what is known of the user",
        "What is known",
        "Users",
        "HR@10, all items allowed. Who has no vector is served the items with most events, and the encoder's column "
        "measures just that. Users without a vector have events, but none that says what they want; cold users had no "
        "event at the cutoff and are in no other number of this section",
    ),
    (
        "hr_at_10_by_history_length",
        "By length of history",
        "Events",
        "Users",
        "HR@10, all items allowed, by the number of events the model could read",
    ),
    (
        "hr_at_10_by_lifecycle",
        "By lifecycle",
        "State at the cutoff",
        "Users",
        "HR@10, all items allowed, by where the user stood at the cutoff",
    ),
    (
        "recall_at_10_by_item",
        "By how well the item was known",
        "Times wanted",
        "Wanted items",
        "Recall@10, all items allowed: the share of the wanted items that are in their user's list, by how often "
        "anybody had wanted the item before the cutoff; 0 are the cold items",
    ),
)


@dataclass(frozen=True)
class Fact:
    """A figure to remember and the sentence that it belongs to."""

    figure: str
    sentence: str


def headline_facts(content: ReportContent) -> list[Fact]:
    """The three to six facts at the top of the page."""
    facts = [_data_fact(content.data)]
    if content.retrieval is not None:
        facts += _retrieval_facts(content.retrieval)
    if content.lifecycle is not None and (total := sum(content.lifecycle.counts.values())):
        here = sum(
            content.lifecycle.counts.get(state, 0) for state in ("new", "core", "casual", "marginal", "resurrected")
        )
        sentence = f"of {total:,} users were still around on {content.lifecycle.as_of}; the others had gone quiet."
        facts.append(Fact(percent(here / total), sentence))
    facts += [fact for score in content.scores[:2] if (fact := _score_fact(score)) is not None]
    return facts


def verdict(retrieval: RetrievalFacts, suffix: str = "") -> str | None:
    """Is the encoder ahead of the better baseline? Within two standard errors the answer is: level."""
    metrics, health = retrieval.evaluation.metrics, retrieval.evaluation.health
    rates = {model: metrics.get(f"retrieval.{model}.hr_at_10{suffix}") for model in MODEL_NAMES}
    known = {model: rate for model, rate in rates.items() if rate is not None}
    users = int(health.get("users_unseen" if suffix else "users_scored", 0))
    if len(known) < len(MODEL_NAMES) or users == 0:
        return None
    rival = max(("popularity", "item_knn"), key=lambda model: known[model])
    own, other = known["encoder"], known[rival]
    noise = 2 * math.sqrt((own * (1 - own) + other * (1 - other)) / users)
    name = "popularity" if rival == "popularity" else "item-kNN"
    if abs(own - other) <= noise:
        return f"level with {name} ({percent(other)}): the difference lies within the noise of {users:,} users"
    return f"{'ahead of' if own > other else 'behind'} {name} ({percent(other)}), the better of the two baselines"


def protocol_sentence(retrieval: RetrievalFacts) -> str:
    """Protocol, k, cutoff and who was counted."""
    health = retrieval.evaluation.health
    if retrieval.protocol == "leave_one_out":
        how = "Leave one out: each user's last event is hidden and ranked against all items, k = 10."
    else:
        days = f"the {retrieval.test_days} days" if retrieval.test_days else "the time"
        read = f"Temporal: models read events before {retrieval.cutoff}"
        how = f"{read}, the test is what users chose in {days} after, k = 10."
    parts = [how, "Full ranking over all items, no sampled negatives."]
    if "users_scored" in health:
        parts.append(f"{health['users_scored']:,} users were scored.")
    if health.get("users_cold"):
        parts.append(f"{health['users_cold']:,} users had no history at the cutoff and are counted apart.")
    if health.get("sampling"):
        parts.append(f"{health['sampling']}.")
    return " ".join(parts)


def hide_sentence(retrieval: RetrievalFacts) -> str | None:
    """How many of the refused items were suggested, and whether the encoder tells them from the wanted ones.

    The number itself stands beside its share: a ratio of two or three items is none to build on.
    """
    metrics, health = retrieval.evaluation.metrics, retrieval.evaluation.health
    rate, lift = (metrics.get(f"retrieval.encoder.hide_{name}_at_10") for name in ("rate", "lift"))
    if rate is None:
        return None
    refused = health["pairs_unwanted"]
    told = (
        f"Of {refused:,} items that users with a history refused in the test (hidden, cancelled), the encoder had "
        f"suggested {round(rate * refused):,} ({percent(rate)})."
    )
    if lift is None:
        return told
    beside = f"Of what they wanted, it had suggested {percent(metrics['retrieval.encoder.recall_at_10'])}"
    return f"{told} {beside}: a refused item was {lift:.2g} times as likely to be suggested as a wanted one."


def settings_sentence(settings: Mapping[str, object]) -> str:
    """How the baselines were set, and who decided it."""
    seen, new = settings["item_knn_seen"], settings["item_knn_unseen"]
    assert isinstance(seen, Mapping)
    assert isinstance(new, Mapping)
    chosen = (
        f"chosen on {settings['num_validation_users']:,} users of an earlier validation window"
        if settings["num_validation_users"]
        else "defaults, for want of a validation window"
    )
    return (
        f"Settings of the baselines ({chosen}). Popularity: {_window(settings['popularity_seen'])}, for new items "
        f"{_window(settings['popularity_unseen'])}. Item-kNN: {_knn(seen)}; for new items {_knn(new)}."
    )


def percent(share: float) -> str:
    """0.1234 -> 12.3 %; never 0 % for what is not 0."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %"


def _data_fact(data: DataFacts) -> Fact:
    period = f", from {data.first_event} to {data.last_event}" if data.first_event and data.last_event else ""
    aside = f" {data.quarantined:,} of {data.rows_read:,} rows were set aside." if data.quarantined else ""
    return Fact(f"{data.users:,}", f"users, known from {data.events:,} events on {data.items:,} items{period}.{aside}")


def _retrieval_facts(retrieval: RetrievalFacts) -> list[Fact]:
    metrics = retrieval.evaluation.metrics
    rate, coverage = metrics.get("retrieval.encoder.hr_at_10"), metrics.get("retrieval.encoder.p90_coverage_at_10")
    if rate is None or coverage is None:
        return []
    what = "their hidden last item" if retrieval.protocol == "leave_one_out" else "something they went on to choose"
    position = verdict(retrieval)
    facts = [
        Fact(percent(rate), f"of users had {what} among ten suggestions (HR@10){f': {position}' if position else ''}.")
    ]
    others = metrics.get("retrieval.popularity.p90_coverage_at_10")
    beside = f" Popularity: {percent(others)}." if others is not None else ""
    facts.append(Fact(percent(coverage), f"of the catalogue fills 90 % of the encoder's suggestions.{beside}"))
    return facts


def _score_fact(score: ScoreFacts) -> Fact | None:
    quality = score.quality
    if quality is None or quality.auc is None or quality.base_rate is None:
        return None
    return Fact(
        f"{quality.auc:.2f}",
        f"AUC of {score.name}: of two users, one who {score.promise} and one who does not, it puts the right one first "
        f"in {100 * quality.auc:.0f} of 100 cases. It comes true for {percent(quality.base_rate)}.",
    )


def _window(days: object) -> str:
    return "all time" if days is None else f"the last {days} days"


def _knn(settings: Mapping[str, object]) -> str:
    decay = settings["half_life_events"]
    weighting = "all events alike" if decay is None else f"weight halving every {decay:g} events"
    own = ", items may repeat" if settings["keeps_self"] else ""
    return f"{settings['neighbours']} neighbours, {weighting}{own}"
