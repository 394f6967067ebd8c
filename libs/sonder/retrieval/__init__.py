"""Which items and which users are nearest to a vector.

selection   the best k of a row of scores, ties by the lower index
exact       exact search by chunked matrix products: the reference, and fast enough up to some 100,000 items
several     candidates from several vectors of one user, in turns by their weights
"""
