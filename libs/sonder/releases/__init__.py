"""One consistent, immutable set of artefacts, and which of them is served.

manifest         what a release is made of: inputs, configuration, digests of every file, metrics, counts
registry         seal, list, show, promote, roll back
current          the file that says what is served, what was before, and what was forced
artefacts        where the artefacts of a release lie, and how serving opens them
stores           remove the online stores of releases that are served no more
consumers        what teams rely on, as they write it down
facts            what there is to know of a release: metrics, intervals, coverage, fields
comparability    whether two releases' numbers mean the same
metric_meaning   which way a metric is better, by its name
gate             does a release keep what consumers rely on?
checking         ask the gate about a release of a workspace
differences      two releases side by side, in numbers
"""
