"""The language in which an analyst names an audience: a rule over the fields of a profile, true or not for each user.

    lifecycle in ('core', 'casual') and interest('garden/tools') > 0.2 and count(save, 28d) >= 3 and not consent.ads

syntax      the tree of a rule, its canonical text, the fields that it reads
grammar     text -> tree, with the place of what cannot be read
schema      which fields there are, of which type, and which names a release knows
checking    names and types against a schema, with the place of what does not fit
compiling   tree -> one Polars expression, for all users at once
evaluating  the same tree on the values of one user
rule        all of it behind one class

Unknown values. A field may be unknown for a user (a score that was not computed, a consent that was never asked).
Logic is three-valued, as in SQL and in Polars: a comparison with an unknown value is unknown, `not` unknown is
unknown, `and` is false and `or` is true as soon as one side says so. A user belongs to an audience only if its rule is
true. So `not consent.ads` leaves out who was never asked; `consent.ads is null or not consent.ads` takes them in.
Sums and counts are never unknown: who has no such interest has interest 0, who has no such event has count 0.
"""
