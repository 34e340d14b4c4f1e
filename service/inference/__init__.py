"""Admitted models, and how their runs are made.

follower   keeps the lineup at what the operator's plan says
lineup     the models that are served, and who answers a request
served     a version, and a model's versions: default, canary, shadow
agreement  whether two versions give the same answer, and how often in a trial
warmup     a model's first runs, and what they teach about it
study      how a model is explained, settled by its first runs
explaining why a model answers so: Shapley values of the raw columns
quantity   what of an answer is explained: log-odds, or the score itself
layout     the columns that are explained, and the references beside them
items      requests that wait for a run, and the bytes of all of them
batching   runs gathered from requests, bounded, stopped at their deadlines
memory     what a worker keeps of the memory it frees
watchdog   stops runs on the event loop that take too long
"""
