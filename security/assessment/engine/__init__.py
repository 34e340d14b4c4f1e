"""Checks run on a target, and what they concluded written.

registry  the checks by name, imported when they are wanted
store     finished work on disk
runner    units of work done by one process, several, or a Ray cluster
run       a whole scan
assess    a bundle's evidence: a profile of it
"""
