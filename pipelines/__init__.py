"""Ray Data and Ray Train jobs, one file a job, each a thin shell around the library.

cli       the `sonder` command                     prepare   events -> history snapshot (Ray Data)
build     all steps into one release, resumable    train     the encoder (Ray Train)
segment   vectors, interests, lifecycle            score     all score heads (Ray Train, XGBoost)
cluster   behaviour clusters (Ray Data)            profiles  one row per user, everything joined
align     an encoder in its parent's space         stability what moved since the parent
evaluate  the quality table of a build             report    what the report page shows
story     one user, for terminal and report        terminal  tables and stories on the screen
submit    the same commands as a Ray job           demo      the main job on an embedded log
"""
