"""What one party decides: secrets and policy. `python -m security` is its command.

access        who calls, and what they may         tokens, permissions     runtime
sealing       the keys that open sealed requests   key ring                runtime
admission     which models may run                 policy, gate, hooks     both
attestation   what this machine can show   TPM quotes, sealing     runtime
audit         what was decided, provably           log, verifier           runtime
monitoring    drift, told without keeping a row  ledger, counts          runtime
training      DP-SGD with Opacus, its accounting   mechanism, trainer      offline
inspection    hostile ONNX files                   structure, backdoors    offline
assessment    what a model withstands              attacks, quality        offline
tracking      what MLflow and DVC say of a model   client, records         offline
documents     what is computed from evidence       card, BOMs              offline
registry      bundles in OCI layouts, registries   images, client          offline
witness       cosigns logs, of others too          C2SP tlog-witness       offline
batch         files of rows, without a server     parts, journal          offline
commands      one module per subcommand of `python -m security`
settings      deploy/service.toml and SEALGATE_… variables, a module for each table
strict_yaml   YAML of one meaning
config_reader  TOML to closed, typed tables, for what is read offline
hpke_keys     keys that open requests and models, in PEM
bounded_fetch  one https answer, within bounds on bytes and time
key_files     private keys in PEM files that only their owner can read
stores        what replays, quotas and revocations are kept in: SQLite, Redis
deferring     imports of libraries without the parts that never run here
errors        this package's branch of the error tree
"""
