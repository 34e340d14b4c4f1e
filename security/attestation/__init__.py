"""What this machine can say about itself, and secrets that it gives in one state only.

attesters  who makes evidence for the key configurations: an interface, and who is asked
quotes     evidence by a TPM 2.0: quotes of its registers
sealed     a secret that a TPM gives while registers hold what they held
tools      tpm2-tools, the commands that a TPM is used by
"""
