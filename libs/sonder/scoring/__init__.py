"""Calibrated probabilities of what each user will do next, with their reasons.

tasks         what a score promises: its population, its label, its points in time; when it is refused
specification which columns, in which order, and how each is said in plain words
features      history before a cutoff -> one row of numbers per user; the same in training, in batch and online
calibration   raw margins -> probabilities that can be multiplied with money
heads         one task's trained model: train, predict, save, load
table         histories and vectors -> scores with drivers: what the batch job and the online path call
drivers       why a score is what it is, in plain words
"""
