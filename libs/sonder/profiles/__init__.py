"""What is served of a user: the profile record, and the online stores that hold it.

record      the profile as a Parquet row and as JSON; how the outputs of all stages become one
packing     a user's recent timeline in 24 bytes an event, for a fresh computation online
store       the protocol of an online store, and the packed record that every store holds
lmdb_store  the embedded store: one file, shared by all replicas of a node through the page cache
redis_*     the networked store: one Redis or Valkey server for the gateways of many nodes
audience_*  what audience rules read of profiles and histories, for all users and for one; their counts
loading     profiles and histories of a release -> a new online store, switched atomically
"""
