"""What a build is worth, measured against honest baselines, and the report that says so.

ranking         the protocol: full ranking of all items, HR@10, NDCG@10, P90 coverage@10
baselines       popularity and item-kNN, each with its best setting on a validation window
fallback        what serving answers users without a vector
evaluate        encoder and baselines side by side on one split
slices          for whom and for which items; what was refused; how mixed the lists are
health          has the embedding space collapsed?
affinity        does an expected share of a category come true?
classification  AUC, PR-AUC, ECE, reliability of a calibrated score
lookalikes      how well an audience grown from seeds finds seeds that it did not see, and its reach curve
truth           agreement with the synthetic world's own truth
report_content  all that a report shows, as plain frozen data
report          one self-contained HTML page and metrics.json
report_facts    the sentences of the page: numbers in plain words
charts          the page's inline SVG
"""
