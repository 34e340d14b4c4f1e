"""What is assessed, and on which rows.

dataconfig  what an attacker may change in a row, and at which cost
answers     probabilities, logits, labels, zipmap: read as one thing
declared    what a graph itself says of an output: classes, scores
decision    how a model's outputs are read, settled once
target      a model run by onnxruntime, and how rows fit it
texts       texts as numbers, in rows of numbers
journal     what an endpoint was asked, and answered, over all runs of a scan
remote      a model behind an endpoint, through the sealed SDK
space       ranges and rules that attacks move within
predictions  what a model once answered, where there is none to ask
"""
