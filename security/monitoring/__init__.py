"""What becomes of a model after it is deployed, told without keeping a row.

windows    fixed windows of UTC time
noise      Gaussian noise on integers, from the operating system's generator
guarantee  rho, epsilon and delta of what is released
ledger     what all releases of a year have cost, with a cap
release    counts become a record: booked, made noisy, published once
"""
