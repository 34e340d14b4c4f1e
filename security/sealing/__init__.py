"""The keys that open sealed requests, and whether a request is new.

keyring    HPKE private keys by id, and the key configurations that publish them
live       the ring of a running server, read again when its folder changes
rotation   generate, rotate, retire, list
publish    key configurations as they are served, plain and signed
replay     which sealed requests were answered already
freshness  a request's Date, and the replay store
"""
