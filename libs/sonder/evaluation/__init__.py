"""What a build is worth, measured against honest baselines, and the report that says so.

ranking         the protocol: full ranking of all items, HR@10, NDCG@10, P90 coverage@10
baselines       popularity and item-kNN, each with its best setting on a validation window
fallback        what serving answers users without a vector
evaluate        encoder and baselines side by side on one split
slices          for whom and for which items; what was refused; how mixed the lists are
health          has the embedding space collapsed?
affinity        does an expected share of a category come true?
classification  AUC, PR-AUC, lift, ECE, reliability of a calibrated score, with intervals
score_means     the same for an expected value or count
score_categories the same for a chance per category
score_slices    for whom a score is calibrated: by lifecycle, tenure, level of the score
backtest        one old model at later cutoffs: does its calibration drift?
score_judgement all of that in one call a task
score_sentences what it means, in plain words
score_charts    lift, reliability, slices, backtest and drivers as inline SVG
ranked_rows     statistics of an order, for a sample and its resamples alike
calibration_error  ECE, and what it is by chance
resampling      the bootstrap over users
lookalikes      how well an audience grown from seeds finds seeds that it did not see, and its reach curve
stability       how far a release moved from its parent: vectors, neighbours, segments, scores
stability_view  the same as the report's rows
user_comparison where the users of two releases went: lifecycle, clusters, scores, vectors, interests
diff_page       the page that compares two releases; diff_charts draws it
page            what every page shares: templates, number filters, style sheets
probes          frozen vectors read by fixed small models: what a consumer gets from them, beside RFM
probe_questions what they are asked: churn, propensities, activity, value, cut from the log
probe_readers   the fixed models; probe_metrics measures them, probe_comparison pairs two encoders
truth           agreement with the synthetic world's own truth
report_content  all that a report shows, as plain frozen data
report          one self-contained HTML page and metrics.json
report_facts    the sentences of the page: numbers in plain words
charts          the page's inline SVG
"""
