"""One row per user with the whole timeline, and every way to look at it at a point in time.

snapshot      the Parquet layout of a history snapshot and how events become it
vocabulary    item, action and surface ids <-> dense indices
timelines     the in-memory form: flat arrays with user offsets; cuts in time are masks
cutoffs       the two evaluation protocols
"""
