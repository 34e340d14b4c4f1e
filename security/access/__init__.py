"""Who calls, and what they may.

jwks          the issuer's public keys (RFC 7517), each bound to one algorithm
tokens        access tokens (RFC 9068) into a principal, or a refusal
permissions   what a principal's scopes allow
issuer        the development issuer: mints tokens where no real one exists
"""
