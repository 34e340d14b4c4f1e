"""Training under differential privacy: DP-SGD, its accounting, its evidence.

config       the training configuration, one TOML file
accounting   noise for a target epsilon, and epsilon from what was done, three ways
noise        randomness of the mechanism, from the operating system
trainer      DP-SGD with Opacus: Poisson sampling, per-row clipping, Gaussian noise
run          data to bundle: split, train, export, manifest, evidence
"""
