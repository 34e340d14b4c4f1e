"""A scan: one command at a model file or an endpoint, one report to defend.

options     the profiles, and the budgets that bound them
dataconfig  what an attacker may change in a row, and at which cost
answers     probabilities, logits, labels, zipmap: read as one thing
target      a model run by onnxruntime, and how rows fit it
journal     what an endpoint was asked, and answered, over all runs of a scan
remote      a model behind an endpoint, through the sealed SDK
space       ranges and rules that attacks move within
context     target and data fitted to each other, for every process
store       finished work on disk
rules       what can be found: ids, severities, remedies
checks      what a check is, and what it gives
basics      NaN, randomness, one answer for everything, accuracy, structure
slices      quality by class, group and band of a column
quality_check      accuracy, calibration, slices, unusual rows
fairness_check     groups of people, by fairlearn with intervals
explanation_check  what answers rest on, by SHAP
registry    the checks
runner      units of work done by one process, several, or a Ray cluster
report      scan.json
run         a whole scan
"""
