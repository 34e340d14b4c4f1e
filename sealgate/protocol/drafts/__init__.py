"""What is not a standard yet: each module names the draft it obeys.

xwing      MLKEM768-X25519 (draft-connolly-cfrg-xwing-kem, draft-ietf-hpke-pq)
chunked    Oblivious HTTP as streams (draft-ietf-ohai-chunked-ohttp)
"""
