"""Evasion: inputs that are changed a little, and get another answer.

whitebox     the graph in torch, in attack coordinates
losses       what gradient attacks climb
starts       points of several kinds that attacks begin at
gradient     Auto-PGD
columns      sums over columns with steps: each column by itself
fab          the fast adaptive boundary attack
square       random search on scores
coordinate   one column at a time; where trees branch
blackbox     attacks that only ask, ART's HopSkipJump among them
attacks      these by name, on rows in boxes and balls of their own
ledger       what counts: confirmed by the model as served
plan         radii and effort
cascade      all of them on a chunk of rows
certified    rows that nothing within a radius can turn
proofs       these beside what was attacked: figures, and checks of both
results      chunks put together
reliability  whether the attacks worked as attacks must
views        what people are shown: curves, tables, the worst examples
check        evasion as a check of a scan
cost         what turning a row of a table costs
smoothing    certified accuracy
"""
