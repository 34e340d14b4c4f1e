"""A witness of transparency logs (C2SP tlog-witness), which anyone can run.

witness  what is checked before a checkpoint is cosigned, and what is answered
state    what was cosigned, kept before it is told: SQLite
rates    how often a log may have something cosigned
server   the HTTP interface
"""
