"""Rows and what they mean: read, typed, identified, split. Offline.

expected   what the author of a model says that it answers, and about which rows
held_out   rows to assess a model on, under what it says of itself
sources    rows to data sets, under a public schema
datasets   data sets with public column ranges, splits that never change
targets    the number that is predicted: its public range, and its scale
identity   which rows are one row, and which owners one owner
readers    CSV, Parquet, npz and callables to tables, bounded; the only reader
columns    tables: columns as numbers, codes and texts
cells      what a cell says, whatever program wrote it
"""
