"""Sealgate beside other servers, on the same model files: `python -m benchmarks peers`.

workloads     three models, what is asked of them, our deployment of them
environments  virtual environments of the peers
contenders    each is started and asked in its way; servers/ are the peers' programs
sealer        sealed requests made beforehand
load          wrk plays requests from files (wrk.lua)
processes     CPU time and memory of a server and its workers
run           all in turn, in rounds
report        JSON, tables, plot
"""
