"""One consistent, immutable set of artefacts, and which of them is served.

manifest    what a release is made of: inputs, configuration, digests of every file, metrics, counts
registry    seal, list, show, promote, roll back
artefacts   where the artefacts of a release lie, and how serving opens them
stores      remove the online stores of releases that are served no more
"""
