"""Several interests per user: clusters of the recent history in embedding space, each with a real item as its face; and
affinity to categories.

derive             the two numbers that the data decides: where merging ends, how fast weight decays
ward               histories + item vectors -> the interest table (INTEREST_SCHEMA)
clusters           the Ward clusters of each user's items, cut at a distance
naming             a readable name and a category for each, from the catalogue
states             new, growing, stable or fading, from when an interest's events happened, with the evidence

taxonomy           which category of each level an item lies in
item_groups        learned groups in place of categories, where there is no catalogue
affinity           histories + taxonomy + fitted numbers -> the affinity table (AFFINITY_SCHEMA)
affinity_fit       half-lives, prior strengths, what a refusal costs, calibration: from the past alone
affinity_artefact  all of it on disk
"""
