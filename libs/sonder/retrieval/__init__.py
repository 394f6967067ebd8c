"""Which items and which users are nearest to a vector.

selection   the best k of a row of scores, ties by the lower index
exact       exact search by chunked matrix products: the reference, and fast enough up to some 100,000 items
approximate an index for large catalogues and many users: inverted file with measured recall, filters inside
diversity   maximal marginal relevance over candidates
several     candidates from several vectors of one user, in turns by their weights
"""
