"""Admitted models, and how their runs are made.

follower   keeps the lineup at what the operator's plan says
lineup     the models that are served: versions, default, canary, shadow
agreement  whether two versions give the same answer, and how often in a trial
warmup     a model's first runs, and what they teach about it
batching   runs gathered from requests, bounded, stopped at their deadlines
memory     what a worker keeps of the memory it frees
watchdog   stops runs on the event loop that take too long
runtime    onnxruntime sessions over admitted bytes
signature  a session's values, against the manifest, as tensors
"""
