"""Who calls, and what they may.

jwks          the issuer's public keys (RFC 7517), each bound to one algorithm
key_sources   where they come from, and how they are kept current
introspection opaque tokens: what their issuer says when asked (RFC 7662)
jws           a signed text (RFC 7515): parsed strictly, then verified
claims        what a token says, by the claims that its issuer's settings name
tokens        access tokens (RFC 9068) into a principal, or a refusal
dpop          proofs that the caller has the key of its token (RFC 9449)
permissions   what a principal may: scopes, and the table of grants
revocation    tokens, subjects and clients that are refused before their time
revocation_stores  where their list is kept: SQLite, Redis
explain       why a request would be allowed or refused
quota_table   how much each subject may ask of each model: deploy/quotas.toml
quota_accounts  what one subject may still ask of one model
quota_stores  where that is counted: SQLite, Redis
quotas        counts, in blocks that a worker reserves
issuer        the development issuer: mints tokens where no real one exists
"""
