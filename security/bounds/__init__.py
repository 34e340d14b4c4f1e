"""Bounds that no attack can pass: what a graph answers, at most and at least, in a box.

CROWN (Zhang, Weng, Chen, Hsieh and Daniel 2018) over ONNX graphs, in numpy and double
precision. Needs onnx and numpy alone, so that who holds the release key recomputes what
the evidence claims, without the libraries that trained or attacked.

files     an ONNX file as nodes and constants
values    what a node gives: constants, intervals, or a step of the network
curves    lines that hold the logistic function and tanh
boxes     preprocessing: operators on intervals, column by column
scores    what decides: which layer, and by how much one class must lead
layers    operators that move values, and affine layers
steps     the network: affine maps, ReLU, curves; forward, backward, their rounding
lowering  a graph and boxes, to steps
crown     linear bounds, backward through the steps
proofs    rows whose decision no point of their box can change
"""
