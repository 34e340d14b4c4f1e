"""The checks, and what several of them share.

structure     the structural inspection as a result
answers       NaN, randomness, one answer for everything
measures      accuracy, AUC, calibration
slices        quality by class, group and band of a column
coverage      how often intervals and sets of classes hold the truth
quality       these three as a check, and unusual rows
rates         rates by group of people, and how far apart
fairness      the same as a check
corruption    what worn data cost, without an attacker
explanations  what answers rest on, by Shapley values
curves        what each value adds, of a model that explains itself
edits         edits of text that turn the answer
evasion       attacks on the input, and what they prove
privacy       who was in the training data, and what a copy costs
poisoning     rows and triggers that somebody planted
numbers       the same questions of a model that predicts a number
estimators    ART's classifiers around what is attacked
descent       Adam, without the compiler that torch's own imports
"""
