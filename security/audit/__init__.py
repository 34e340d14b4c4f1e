"""What was decided, provably, without payloads.

log      one hash-chained file per writer
verify   reads the files back and says which record was changed
"""
