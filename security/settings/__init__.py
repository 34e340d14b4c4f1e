"""deploy/service.toml: a module for each of its tables.

loading        the file and the SEALGATE_… variables, read and checked
documents      reading such files, within bounds
checks         what several tables are held to
service        what is served, and the bounds of a request
access         whose tokens are accepted
issuers        what is said about each issuer of tokens
profiles       what providers issue beside RFC 9068
sealing        sealed transport, its keys and its replay window
admission      which models may run
attestation    evidence about the machine, beside the signed keys
quotas         where it is counted what each subject asks
redis          what all stores that are in a Redis share
audit          the audit log, its keys and its checkpoints
runtime        how models are run
deployment     where it is said which models a running server serves
monitoring     counting what is asked and answered, released with privacy
tls            TLS of the listening socket
observability  logs, metrics, and the description of the interface
"""
