"""What was decided, provably, without payloads.

records   what a record is: its fields, its line, its hash
log       writes records and checkpoints: chained, forced to disk, rotated
group     many requests wait for one write
tally     records that anyone could cause: bounded, counted beyond the bound
journal   the log of this deployment, for servers and for commands
verify    reads a log back and says which record was changed
follow    reads on in a log that verified, record by record
query     which records, for whom, as what
"""
