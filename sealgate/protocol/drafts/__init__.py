"""What is not a standard yet: each module names the draft it obeys.

chunked    Oblivious HTTP as streams (draft-ietf-ohai-chunked-ohttp)
"""
