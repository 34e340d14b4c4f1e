"""Batch jobs: a file of rows, answered by an admitted model as the server would.

job       a whole job: gate, quotas, audit, parts, the answer; or on with one
plan      which rows are in which part of the work, and what a job is about
journal   a job's folder: what is done, so that it is done once
work      one part: rows read, run, and written
writing   answers as Parquet, CSV or JSON lines; parts joined to one file
running   who does the parts: this process, several, or a Ray cluster
"""
