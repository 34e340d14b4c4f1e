"""Poisoned training data, and triggers in a model.

activations    what the last layer reads, for each row
groups         which rows of a class stand apart: clusters, spectral signatures
pattern        what such a group shares, and whether that decides the answer
check          training data as a check of a scan
trigger        the smallest patch of an image that sends everything to one class
columns        the fewest columns of a table that do
trigger_check  both as a check of a scan
"""
