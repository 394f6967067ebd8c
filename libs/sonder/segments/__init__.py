"""Which groups a user belongs to, at any point in time.

thresholds   the days and shares that separate the lifecycle states, from configuration or from the log's own rhythm
lifecycle    cold, new, core, casual, marginal, dormant, resurrected: the state of each user and since when
"""
