"""Rows and what they mean: read, typed, identified, split. Offline.

datasets   data sets with public column ranges, identity of rows and owners, splits
columns    cells to numbers, codes and texts
readers    CSV, parquet, npz and callables to arrays, bounded
sources    those to data sets, under a public schema
"""
