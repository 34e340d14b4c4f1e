"""What becomes of a model after it is deployed, told without keeping a row.

monitor    a worker's part: counts, stores what it has, releases what is over
cohorts    labels that come later: tickets given, labels taken, cohorts released
outcomes   what released labels say: accuracy, calibration, errors, fairness
tickets    an answer's outcome, sealed and given to its caller
answers    what is kept of an answer with a ticket, and what a label makes of it
labels     the store of labels, which is the list of spent tickets
counts     one event of each subject, chosen at random, encrypted for the store
keeping    the store of encrypted counts: SQLite, Redis
reference  evidence of what is usual, and how it is read
overview   what is told of one version: its windows, drift, labels
estimate   accuracy without labels, from the shares of scores
drift      whether released counts differ from a reference
layout     which histograms a model has, and what falls where
release    counts become a record: booked, made noisy, published once
ledger     what all releases of a year have cost, with a cap
remote     the Redis that the three share
noise      Gaussian noise on integers, from the operating system's generator
guarantee  rho, epsilon and delta of what is released
windows    fixed windows of UTC time
"""
