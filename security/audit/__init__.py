"""What was decided, provably, without payloads.

records        what a record is: its fields, its line, its hash
log            writes records and checkpoints: chained, forced to disk, rotated
checkpoints    the checkpoints of all writers: one file, which only grows
tree_log       one log with one origin, which many processes write
stored_hashes  the hashes of a tree in a file, for proofs
witnesses      who must have cosigned the log, and whether enough of them did
asking         has witnesses cosign the log, and asks what they saw
receipts       proofs for callers that their record is in the log
offers         the public log of what this deployment offers
group          many requests wait for one write
tally          records that anyone could cause: bounded, counted beyond the bound
journal        the log of this deployment, for servers and for commands
verify         reads a log back and says which record was changed
verify_tree    the log of checkpoints held to its leaves, its root and its witnesses
follow         reads on in a log that verified, record by record
query          which records, for whom, as what
"""
