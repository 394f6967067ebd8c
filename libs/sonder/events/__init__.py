"""The event contract, and everything that brings a log into it.

contract        the columns, their types, the reasons for which a row is set aside
actions         what an action says about the item: wanted, shown, unwanted
reading         resolve a configuration, plan the splits of a log, read one: the way in
mapping         one raw batch -> events and quarantined rows, with values, timestamps, iso_times, quarantine
files           paths, folders, globs, URIs, packages -> files; sampling and resolving look at them once
csv_rows        the readers, each yielding raw_blocks: json_rows, columnar (Parquet, Arrow), sequences; text_lines below
public_logs     MovieLens, CDNOW, Online Retail, item sequences; datasets lists them
catalogue       the item table of a log
guess           what `sonder init` does: guess_columns, column_names, spread, guess_yaml
synthetic       a world with known truth
"""
