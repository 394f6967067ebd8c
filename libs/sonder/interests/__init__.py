"""Several interests per user: clusters of the recent history in embedding space, each named by a real item.

derive   the two numbers that the data decides: where merging ends, how fast weight decays
ward     histories + item vectors -> the interest table (INTEREST_SCHEMA)
states   new, growing, stable or fading, from when an interest's events happened
"""
