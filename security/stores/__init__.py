"""What the stores of replays, quotas and revocations are kept in.

local   an SQLite file, for the workers of one machine
shared  a Redis, for several machines
"""
