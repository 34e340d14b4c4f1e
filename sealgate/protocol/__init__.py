"""Bytes that two parties must agree on. No I/O, no clock, no environment.

versions      what to say of a format that is of a later version
strict_json   JSON with bounds: what every signed document is read with
bhttp         Binary HTTP (RFC 9292)
bhttp_fields  what may stand in their fields, and how much
bhttp_stream  the same messages, as they arrive
padding       sizes that messages are padded to
dhkem         X25519 as a key encapsulation, labeled HKDF (RFC 9180, section 4)
kem           the key encapsulations, by identifier
hpke          HPKE base mode with export (RFC 9180)
sealedfile    a file encrypted to the keys of deployments, in chunks
keyconfig     key configurations (RFC 9458, section 3)
signedkeys    key configurations signed by a deployment's identity keys
tpm2          quotes of a TPM 2.0 (TCG, Part 2)
ohttp         encapsulated requests and responses (RFC 9458, section 4)
ohttp_stream  a large encapsulated request, decrypted as it arrives
datatypes     v2's datatypes, BF16 and BYTES among them
tensors       Open Inference Protocol v2 tensors as JSON
long_arrays   JSON whose long arrays are read in portions
binary_tensors  the same as bytes behind the JSON (Triton's extension)
dpop          proofs that a caller has the key its token is bound to (RFC 9449)
dsse          envelopes, and the Sigstore bundle around them
envelope      an envelope that several keys sign
notes         signed checkpoints of a log (C2SP signed-note, tlog-checkpoint)
cosignatures  what a witness adds to one (C2SP tlog-cosignature)
tlog_witness  what it is asked with (C2SP tlog-witness)
merkle        the trees of such a log, and their proofs (RFC 6962, RFC 9162)
drafts        what is not a standard yet
receipts      proof that a request's record is in the audit log
offers        the public log of what a deployment offers (C2SP tlog-tiles)
statement     in-toto statements: test results and verification summaries
"""
