"""Training under differential privacy: DP-SGD, its accounting, its evidence.

config          the training configuration, one TOML file
config_sections what each of its sections holds
config_rules    which values it may hold
additive_rules  the same of an ebm, and what does not go with it
draft           a first configuration of a table
data            the rows a configuration names: read, checked, split
modules         a user's network, refused where it cannot be private
initial         first weights, drawn here from rules that the evidence states
network         a network with its graph as it was before it saw a row
accounting      noise for a target epsilon, and epsilon from what was done, three ways
composed        what queries on all rows cost together, exactly
curve           what it has cost so far, for a display
guarantee       from a target to a plan, and from what was done to a claim
noise           randomness of the mechanism, from the operating system
gradients       clipped per-unit gradients: what a method must give
bookkeeping     one pass backwards, norms without gradients: the fastest
layer_gradients one parameter's gradients of every unit, as its rules give them
per_example     Opacus' hooks, for any layer that it knows
gradient_methods  which of these when
adversarial     PGD training and TRADES, alone and with DP-SGD
certified       the same with interval bounds, so that more can be certified
intervals       a network that carries a box beside each point
mechanism       sampling, noise, and a record of what was really done
distributed     the mechanism over several processes, with Opacus' wrapper
stacked         copies of a network side by side, for audits
canaries        trainings with and without a planted unit, watched
examples        what is trained on, in tensors, and batches of it
placement       on which device, and how many examples fit there
additive        an ebm, by InterpretML, with noise of ours
boosted         its training: planned, booked whole, done in one piece
additive_report what the evidence says of it
clamped         targets beyond their range, as the evidence tells them
trainer         one training: sampling, clipping, noise, with its seams
loop            its steps: schedule, averages, monitors, where it stands
exporting       a trained network to ONNX, compared with it
bundle          manifest and the three reports
session         one training: planned, booked, kept, shown
ledger          what all trainings on one data set have spent, with a cap
entries         trainings as the ledger holds them, and which share their data
overlap         whether two data sets share people, from marks that name nobody
selection       what it costs to choose the best of several tries
candidates      the settings that a search chooses from
search          the choice itself, private as a whole
keeper          between trainer and ledger: books steps, keeps checkpoints
checkpoint      where a training stands, in plain arrays
run             data to bundle
rehearsal       the same without rows and steps: what it would be
reference       histograms of usual rows, for monitoring
retrain         the next version, compared with the current one
"""
