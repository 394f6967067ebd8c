"""Which groups a user belongs to, at any point in time.

thresholds   the days and shares that separate the lifecycle states, from configuration or from the log's own rhythm
clusters     behaviour clusters: k-means over the users' vectors by statistics that add up over blocks
stability    how many clusters: as many as come back when the users are drawn again
cluster_traits, cluster_names   what users of a cluster do more than others: its portrait and its name
cluster_start      where a retrain starts: at its parent's clusters, unless fresh ones are clearly better
cluster_matching   cluster 7 stays cluster 7 across retrains
lifecycle    cold, new, core, casual, marginal, dormant, resurrected: the state of each user and since when
moments      the same states at many moments in one pass
growth       users by state at period ends, who came, came back, stayed and left between; all counts add up
cohorts      the share of each week's or month's newcomers that is active later
forecast     the mix four weeks ahead, beside the naive forecast, with the error both had
overview     all of these of one log, from counts that add over users
rules        the language of audience rules: read, checked, evaluated over tables and over one user
audiences    versioned definitions of audiences, and who has been in them from when to when
lookalike    from seeds to how similar anybody is: seed_density and seed_classifier, combined and calibrated
lookalike_ranking  the most similar out of millions: a coarse score of everybody, the exact one of who may be among them
"""
