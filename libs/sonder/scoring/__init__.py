"""Calibrated probabilities of what each user will do next, with their reasons.

tasks         what a score promises: its population, its label, its points in time; when it is refused
specification which columns, in which order, and how each is said in plain words
features      history before a cutoff -> one row of numbers per user; the same in training, in batch and online
calibration   raw margins -> probabilities that can be multiplied with money
heads         one task's trained model: train, predict, save, load
table         histories and vectors -> scores with drivers: what the batch job and the online path call
forest        all heads as one model: every margin of a batch in one call
drivers       why a score is what it is, in plain words; what moves a score at all
driver_stability whether the reasons hold still when a feature moves by a hair
decisions     a score and a payoff -> whom to act on
forecast      what a choice will bring, and what it would have brought on a held-out window
uplift        what a randomised treatment changes for each user
randomisation whether the treatment was drawn at random
qini          how well an order finds those whom acting changes; uplift_quality tells it beside a baseline
"""
