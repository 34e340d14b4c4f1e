"""What the stores of replays, quotas, revocations and counts are kept in.

local    an SQLite file, for the workers of one machine
shared   a Redis, for several machines
clients  the redis library's clients: of a server, of Sentinels, of a cluster
places   the URLs of a Redis, read
"""
