"""Which models may be packaged, started and loaded.

trust            the trust root: public keys by role, and what else is believed
trust_chain      signed trust roots, each vouched for by the one before: TUF's rules
trust_store      the trust root where a deployment keeps it: read, remembered, replaced
keys             signing keys in files: a role's ECDSA P-256 and ML-DSA-65 keys
rules            what a policy says: which evidence a model needs, from whom, how fresh
policy           policy.toml read into rules; its mistakes with their lines
comparison       two policies: which requirements got stricter, which looser
toml_lines       on which line a TOML document has each key
attest           reports into signed statements, an evaluation into a verdict, waivers
upgrade          older evidence in today's form, of what verified here
timestamps       RFC 3161: by when a signature existed, on an authority's word
steps            how checks are written: the first refusal, or all of them
waivers          checks 20 to 23: who may let what pass, and until when
evaluation       checks 1 to 10: whether the evidence meets the policy
consistency      check 27: reports that contradict themselves or each other
trained          the part of it on what a training wrote, field by field
trained_ebm      the same where an ebm was trained
regression       the part on a number that was learnt: its range, in every report
clamped          the part on targets beyond that range, which were clamped
stated           how a field is held to another place that says the same
certified        what evidence claims is proved, and whether it was recomputed
coverage         a part of it: a stated coverage, and the evidence of it
outputs          check 29: how much of each answer may leave
gate             every check, numbered: the verdict, or the first refusal, or all
signers          keys in files, key services and hardware modules
doors            the gate, and the checks of the files beside the evidence
verification     the same for other people's pipelines, from Python
model_keys       keys of sealed models, and the sources that they come from
command_source   a program that fetches such a key from a KMS or a vault
tpm_source       such a key that this machine's TPM gives in one state only
confidential     models that are sealed in the bundle and opened in memory
model_signature  model.sig, for the OpenSSF's model signing
store            bundles in BentoML's model store
sources          where a served bundle is read: the store, or a mounted folder
lineage          versions in the store: who signed what, and what still stands
outside          a built Bento, or the folder of an image, checked from outside
lifecycle        states of a served version, and what may follow what
plan             what a running server serves: a file, its history, its reports
changes          of a plan: load, unload, default, canary, shadow, rollback
loaded           a session over an admitted bundle's bytes, and what may leave it
signature        a session's values, against the manifest, as tensors
observations     signed reports about what is served, beside the plan: checks 40 to 42
promotion        whether a version may answer by default: check 43
contents         what a Bento holds: sources, lock; needs no BentoML
hooks            the gate at `bentoml build` and at start
"""
