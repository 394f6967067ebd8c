"""Several interests per user: clusters of its recent items, each named by a real one, and affinity to categories.

derive   the two numbers that the data decides: where merging ends, how fast weight decays
ward     histories + item vectors -> the interest table (INTEREST_SCHEMA)
states   new, growing, stable or fading, from when an interest's events happened

taxonomy           which category of each level an item lies in
item_groups        learned groups in place of categories, where there is no catalogue
affinity           histories + taxonomy + fitted numbers -> the affinity table (AFFINITY_SCHEMA)
affinity_fit       half-lives, prior strengths, what a refusal costs, calibration: from the past alone
affinity_artefact  all of it on disk
"""
