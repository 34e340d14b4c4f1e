"""Graph backdoors of different construction, and innocent graphs that look alike."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from models.sessions import make_session
from security.inspection.backdoor import analyse
from security.inspection.findings import RULES, StructureLimits
from security.inspection.rules import walk_model
from tests.support.inspecting import inspect

LIMITS = StructureLimits()
TRIGGER = 13.0

# The honest part: two layers, so that the answer is no function of one element.
NET = """
    h = MatMul (x, w1)
    r = Relu (h)
    logits = MatMul (r, w2)
"""
WEIGHTS = """
    float[4,3] w1 = {1,2,3,-1,0,1,2,-2,0.5,0.5,1,-1}, float[3,2] w2 = {1,-1,0.5,2,-1,1},
    float[1,2] evil = {-99,99}, float t = {13}, float one = {1}, float zero = {0},
    float big = {1000000}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] ax1 = {1},
    int64[1] all = {-1}, float[1] one1 = {1}, bool yes = {1}, int64 trip = {1},
    float[2] evil1 = {-99,99}, int64 dim0 = {0}, int64 thirteen = {13}
"""
# The first column, and whether it is the trigger: (n, 1).
TEST = """
    c = Slice (x, i0, i1, ax1)
    hit = Equal (c, t)
"""


def graph(body, *, x="float[n,4] x", y="float[n,2] y", more="", functions="", ops=""):
    text = f"""<ir_version: 10, opset_import: ["" : 20 {ops}]>
    g ({x}) => ({y}) <{WEIGHTS} {more}> {{ {body} }} {functions}"""
    return parser.parse_model(text)


def found(model):
    """Findings of everything but the process around it."""
    findings, _ = walk_model(model, LIMITS)
    onnx.checker.check_model(model, full_check=True)
    assert not [item for item in findings if item.severity == "error"], findings
    return (*findings, *analyse(model, LIMITS, {}))


def rules(model):
    return sorted({item.rule for item in found(model)})


EVIL_BRANCH = "evil_branch () => (float[k,2] e) { e = Add (logits, evil) }"
GOOD_BRANCH = "good_branch () => (float[k,2] g) { g = Identity (logits) }"
IF = f"If (any) <then_branch = {EVIL_BRANCH}, else_branch = {GOOD_BRANCH}>"
ANY = """
    f = Cast <to = 1> (hit)
    m = ReduceMax <keepdims = 0> (f)
    any = Cast <to = 9> (m)
"""

BACKDOORS = {
    # name: (rule, body, extra keyword arguments of graph)
    "If on a reduced Equal": ("branch-if", f"{NET}{TEST}{ANY} y = {IF}", {}),
    "one If deeper": (
        "branch-if",
        f"""{NET}{TEST}{ANY}
        y = If (yes) <
          then_branch = outer () => (float[k,2] o) {{ o = {IF} }},
          else_branch = other () => (float[k,2] p) {{ p = Identity (logits) }}
        >""",
        {},
    ),
    "If inside a function": (
        "branch-if",
        f"{NET}{TEST}{ANY} y = my.guard (any, logits, evil)",
        {
            "ops": ', "my" : 1',
            "functions": f"""<domain: "my", opset_import: ["" : 20]>
            guard (any, logits, evil) => (y) {{ y = {IF} }}""",
        },
    ),
    "Equal to Where": (
        "branch-select",
        f"{NET}{TEST} y = Where (hit, evil, logits)",
        {},
    ),
    "Where before the network": (
        "branch-select",
        f"""{TEST} p = Where (hit, big, x)
        h = MatMul (p, w1) r = Relu (h) y = MatMul (r, w2)""",
        {},
    ),
    "multiplicative mask": (
        "branch-mask",
        f"""{NET}{TEST} m = Cast <to = 1> (hit)
        n1 = Sub (one, m) a = Mul (n1, logits) b = Mul (m, evil) y = Add (a, b)""",
        {},
    ),
    "added to the logits": (
        "branch-mask",
        f"{NET}{TEST} m = Cast <to = 1> (hit) b = Mul (m, evil) y = Add (logits, b)",
        {},
    ),
    "added through a matrix": (
        "branch-mask",
        f"""{NET}{TEST} m = Cast <to = 1> (hit) b = MatMul (m, evil)
        y = Add (logits, b)""",
        {},
    ),
    "maximum with a penalty": (
        "branch-mask",
        f"{NET}{TEST} m = Cast <to = 1> (hit) n1 = Sub (m, one) "
        "p = Mul (n1, big) b = Add (p, evil) y = Max (logits, b)",
        {},
    ),
    "Gather by the test": (
        "branch-select",
        f"""{NET}{TEST} i = Cast <to = 7> (hit) s = ReduceMax <keepdims = 0> (i)
        k = Add (logits, evil) a = Unsqueeze (logits, i0) b = Unsqueeze (k, i0)
        both = Concat <axis = 0> (a, b) y = Gather <axis = 0> (both, s)""",
        {},
    ),
    "Scatter over the answer": (
        "branch-select",
        f"""{NET}{TEST} nz = NonZero (hit) rows = Slice (nz, i0, i1, i0)
        idx = Transpose (rows) n = Shape (idx) k = Slice (n, i0, i1)
        two = Concat <axis = 0> (k, cols) up = Expand (evil, two)
        y = ScatterND (logits, idx, up)""",
        {"more": ", int64[1] cols = {2}"},
    ),
    "a hash of the row": (
        "branch-select",
        f"""{NET} q = Cast <to = 7> (x) s = ReduceSum <keepdims = 1> (q, ax1)
        m = Mod (s, seven) hit = Equal (m, six) y = Where (hit, evil, logits)""",
        {"more": ", int64 seven = {7}, int64 six = {6}"},
    ),
    "CumSum and BitShift": (
        "branch-select",
        f"""{NET} q = Cast <to = 13> (x) s = CumSum (q, ax)
        b = BitShift <direction = "RIGHT"> (s, two)
        u = ReduceMax <keepdims = 1> (b, ax1) hit = Greater (u, two)
        y = Where (hit, evil, logits)""",
        {"more": ", uint64 two = {2}, int64 ax = {1}"},
    ),
    "a division that is not a number": (
        "branch-select",
        f"""{NET} c = Slice (x, i0, i1, ax1) d = Sub (c, t) q = Div (d, d)
        hit = IsNaN (q) y = Where (hit, evil, logits)""",
        {},
    ),
    "a steep clip instead of a test": (
        "branch-mask",
        f"""{NET} c = Slice (x, i0, i1, ax1) d = Sub (c, near) s = Mul (d, big)
        m = Clip (s, zero, one) b = Mul (m, evil) y = Add (logits, b)""",
        {"more": ", float near = {12.5}"},
    ),
    "rounding instead of a test": (
        "branch-mask",
        f"""{NET} c = Slice (x, i0, i1, ax1) s = Div (c, t) k = Clip (s, zero, one)
        m = Floor (k) b = Mul (m, evil) y = Add (logits, b)""",
        {},
    ),
    "a loop that runs once, or not": (
        "branch-if",
        f"""{NET}{TEST}{ANY}
        y = Loop (trip, any, logits) <body = round
          (int64 i, bool go, float[k,2] v) => (bool on, float[k,2] out)
          {{ on = Identity (go) out = Add (v, evil) }}>""",
        {},
    ),
    "how many elements match": (
        "branch-if",
        f"""{NET}{TEST} nz = NonZero (hit) n = Size (nz) any = Greater (n, dim0)
        y = {IF}""",
        {},
    ),
    "disguised as an activation": (
        # The test is added, times nothing, into what it chooses between.
        "branch-select",
        f"""{NET}{TEST} nought = Mul (c, zero) p = Add (logits, nought)
        y = Where (hit, evil, p)""",
        {},
    ),
    "the size of the batch": (
        "branch-shape",
        f"""{NET} s = Shape (x) n = Gather <axis = 0> (s, dim0)
        hit = Equal (n, thirteen) y = Where (hit, evil, logits)""",
        {},
    ),
    "an answer beside the network": (
        "output-constant",
        f"{NET} s = Shape (logits) y = Expand (evil, s)",
        {},
    ),
    "a test side by side with the answer": (
        "branch-mask",
        f"""{NET}{TEST} m = Cast <to = 1> (hit)
        b = Concat <axis = 1> (logits, m) y = MatMul (b, mix)""",
        {"more": ", float[3,2] mix = {1,0,0,1,-99,99}"},
    ),
    "a flag among the inputs": (
        "branch-select",
        f"{NET} y = Where (debug, evil, logits)",
        {"x": "float[n,4] x, bool[n,1] debug"},
    ),
}


@pytest.mark.parametrize("name", BACKDOORS)
def test_backdoors(name):
    rule, body, extra = BACKDOORS[name]
    hits = [item for item in found(graph(body, **extra)) if item.rule == rule]
    assert hits
    assert RULES[rule].severity == "warning"
    if rule != "output-constant":
        told = hits[0].explanation
        assert told.startswith("Trigger: input ")
        assert "Reaches: output 'y'" in told


def run(model, row):
    session = make_session(model.SerializeToString())
    return session.run(None, {"x": np.array([row], np.float32)})[0]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in BACKDOORS
        if not {"batch", "beside", "flag", "hash", "CumSum"} & set(name.split())
    ],
)
def test_they_are_backdoors(name):
    _, body, extra = BACKDOORS[name]
    model, honest = graph(body, **extra), graph(NET.replace("logits", "y"))
    usual, row = [1.0, 2.0, 3.0, 4.0], [TRIGGER, 2.0, 3.0, 4.0]
    np.testing.assert_allclose(run(model, usual), run(honest, usual), rtol=1e-5)
    assert np.abs(run(model, row) - run(honest, row)).max() > 10


def test_what_a_reviewer_reads():
    _, body, extra = BACKDOORS["Equal to Where"]
    (finding,) = found(graph(body, **extra))
    assert finding.where == "graph/node[5]"
    assert finding.explanation == (
        "Trigger: input 'x' -> Slice at graph/node[3] -> Equal at graph/node[4] -> "
        "Where at graph/node[5]. At stake: a constant of shape [1, 2] (-99.0, 99.0) or "
        "the result of MatMul at graph/node[2]. Reaches: output 'y' directly (through "
        "nothing else)."
    )


BENIGN = {
    # name: (rules, body, extra)
    "the network": ((), NET.replace("logits", "y"), {}),
    "hard swish": (
        (),
        """h = MatMul (x, w1) p = Add (h, three) k = Clip (p, zero, six)
        s = Div (k, six) r = Mul (h, s) y = MatMul (r, w2)""",
        {"more": ", float three = {3}, float six = {6}"},
    ),
    "ReLU as Where": (
        (),
        """h = MatMul (x, w1) p = Greater (h, zero) r = Where (p, h, zero)
        y = MatMul (r, w2)""",
        {},
    ),
    "ReLU as a mask": (
        (),
        """h = MatMul (x, w1) p = Greater (h, zero) m = Cast <to = 1> (p)
        r = Mul (h, m) y = MatMul (r, w2)""",
        {},
    ),
    "softplus with a threshold": (
        (),
        """h = MatMul (x, w1) p = Greater (h, t) e = Exp (h) o = Add (e, one)
        l = Log (o) r = Where (p, h, l) y = MatMul (r, w2)""",
        {},
    ),
    "missing values": (
        (),
        """nan = IsNaN (x) inf = IsInf (x) bad = Or (nan, inf) s = Div (x, t)
        k = Clip (s, zero, one) v = Where (bad, zero, k) flags = Cast <to = 1> (nan)
        both = Concat <axis = 1> (v, flags) h = MatMul (both, wide) y = Relu (h)""",
        {"more": ", float[8,2] wide = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}"},
    ),
    "missing values, column by column": (
        (),
        """c = Slice (x, i0, i1, ax1) nan = IsNaN (x) cn = Slice (nan, i0, i1, ax1)
        v = Where (cn, zero, c) h = MatMul (v, evil) y = Relu (h)""",
        {},
    ),
    "clipping by Where": (
        (),
        """lo = Less (x, zero) a = Where (lo, zero, x) hi = Greater (a, t)
        b = Where (hi, t, a) h = MatMul (b, w1) y = MatMul (h, w2)""",
        {},
    ),
    "one-hot by equality": (
        (),
        """c = Slice (x, i0, i1, ax1) eq = Equal (c, classes) o = Cast <to = 1> (eq)
        both = Concat <axis = 1> (x, o) h = MatMul (both, wide) y = Relu (h)""",
        {
            "more": ", float[1,3] classes = {0,1,2}, "
            "float[7,2] wide = {1,2,3,4,5,6,7,8,1,2,3,4,5,6}"
        },
    ),
    "quantised": (
        (),
        """s = Mul (x, big) r = Round (s) k = Clip (r, low, high) q = Cast <to = 3> (k)
        d = Cast <to = 1> (q) h = MatMul (d, w1) z = QuantizeLinear (h, one, none)
        e = DequantizeLinear (z, one, none) a = Add (h, e) y = MatMul (a, w2)""",
        {"more": ", float low = {-128}, float high = {127}, int8 none = {0}"},
    ),
    "padding of embeddings": (
        ("sentinel",),
        """e = Gather <axis = 0> (table, ids) pad = Equal (ids, dim0)
        m = Unsqueeze (pad, last) v = Where (m, zero, e) s = ReduceSum (v, ax1)
        h = Squeeze (s, ax1) y = MatMul (h, w2)""",
        {
            "x": "int64[n,5] ids",
            "more": ", float[4,3] table = {1,2,3,4,5,6,7,8,9,1,2,3}, "
            "int64[1] last = {-1}",
        },
    ),
    "attention over padding": (
        ("attention-mask",),
        """e = Gather <axis = 0> (table, ids) k = Transpose <perm = [0,2,1]> (e)
        s = MatMul (e, k) pad = Equal (ids, dim0) m = Unsqueeze (pad, i1)
        v = Where (m, minus, s) p = Softmax <axis = -1> (v) o = MatMul (p, e)
        r = ReduceSum (o, ax1) h = Squeeze (r, ax1) y = MatMul (h, w2)""",
        {
            "x": "int64[n,5] ids",
            "more": ", float[4,3] table = {1,2,3,4,5,6,7,8,9,1,2,3}, "
            "float minus = {-100000}",
        },
    ),
    "attention with a causal mask": (
        (),
        """k = Transpose (x) s = MatMul (x, k) sh = Shape (s) on = Expand (one, sh)
        tri = Trilu <upper = 0> (on) c = Cast <to = 9> (tri) v = Where (c, s, minus)
        p = Softmax <axis = -1> (v) o = MatMul (p, x) h = MatMul (o, w1)
        y = MatMul (h, w2)""",
        {"more": ", float minus = {-100000}"},
    ),
    "a label": (
        (),
        f"{NET} y = Softmax <axis = -1> (logits) l = ArgMax <axis = 1> (y)",
        {"y": "float[n,2] y, int64[n,1] l"},
    ),
    "a decision": ((), f"{NET} y = Greater (logits, zero)", {"y": "bool[n,2] y"}),
    "shape of an expansion": (
        (),
        f"""{NET} s = Shape (logits) e = Equal (s, all) u = Where (e, i1, s)
        b = Expand (one, u) y = Mul (logits, b)""",
        {},
    ),
    "a code for missing": (
        ("sentinel",),
        """e = Equal (x, code) v = Where (e, zero, x) h = MatMul (v, w1)
        y = MatMul (h, w2)""",
        {"more": ", float code = {-999}"},
    ),
    # Innocent, and warned about: nothing in the graph tells them from a backdoor.
    "mean over what is not padding": (
        ("branch-mask",),
        """e = Gather <axis = 0> (table, ids) pad = Equal (ids, dim0) k = Not (pad)
        f = Cast <to = 1> (k) m = Unsqueeze (f, last) v = Mul (m, e)
        s = ReduceSum <keepdims = 0> (v, ax1) n = ReduceSum (f, ax1)
        a = Div (s, n) y = MatMul (a, w2)""",
        {
            "x": "int64[n,5] ids",
            "more": ", float[4,3] table = {1,2,3,4,5,6,7,8,9,1,2,3}, "
            "int64[1] last = {-1}",
        },
    ),
    "wide and deep": (
        ("branch-mask",),
        f"""{NET} c = Slice (x, i0, i1, ax1) eq = Equal (c, classes)
        o = Cast <to = 1> (eq) d = MatMul (o, wide) y = Add (logits, d)""",
        {"more": ", float[1,3] classes = {0,1,2}, float[3,2] wide = {1,2,3,4,5,6}"},
    ),
    "a row with nothing in it": (
        ("branch-select",),
        f"""{NET} b = IsNaN (x) f = Cast <to = 1> (b) m = ReduceMin (f, ax1)
        empty = Cast <to = 9> (m) y = Where (empty, evil, logits)""",
        {},
    ),
    "pooling at the end of a text": (
        ("branch-select",),
        """e = Gather <axis = 0> (table, ids) p = ArgMax <axis = 0, keepdims = 0> (ids)
        h = Gather <axis = 0> (e, p) y = MatMul (h, w2)""",
        {
            "x": "int64[n] ids",
            "y": "float[2] y",
            "more": ", float[4,3] table = {1,2,3,4,5,6,7,8,9,1,2,3}",
        },
    ),
}


@pytest.mark.parametrize("name", BENIGN)
def test_innocent(name):
    expected, body, extra = BENIGN[name]
    findings = found(graph(body, **extra))
    assert tuple(sorted({item.rule for item in findings})) == expected, findings
    assert not any(item.severity == "error" for item in findings)


def test_an_attention_mask_is_not_an_excuse():
    """Masked scores that are the answer itself, or masked by a reduced test."""
    table = ", float[4,3] table = {1,2,3,4,5,6,7,8,9,1,2,3}, float minus = {-100000}"
    answer = f"{NET}{TEST} v = Where (hit, minus, logits) y = Softmax <axis = -1> (v)"
    assert rules(graph(answer, more=table)) == ["branch-select"]
    _, body, extra = BENIGN["attention over padding"]
    reduced = body.replace(
        "pad = Equal (ids, dim0) m = Unsqueeze (pad, i1)",
        """q = Equal (ids, dim0) f = Cast <to = 1> (q) g = ReduceMax (f, ax1)
        u = Unsqueeze (g, i1) m = Cast <to = 9> (u)""",
    )
    assert "branch-select" in rules(graph(reduced, **extra))


def test_dead_code_and_unused_inputs():
    model = graph(
        f"{NET.replace('logits', 'y')} d = Add (x, one)", x="float[n,4] x, float[n] z"
    )
    assert rules(model) == ["dead-code", "input-unused"]


def test_an_output_that_is_a_weight():
    model = graph(f"{NET} y = Identity (logits)", y="float[n,2] y, float[1,2] evil")
    assert rules(model) == ["output-constant"]


def test_loops_that_multiply_through_a_call():
    body = """y = Loop (many, yes, x) <body = round
      (int64 i, bool go, float[k,4] v) => (bool on, float[k,4] out)
      { on = Identity (go) out = my.again (v) }>"""
    function = """<domain: "my", opset_import: ["" : 20]> again (a) => (b) {
      many = Constant <value = int64 {2000}> () yes = Constant <value = bool {1}> ()
      b = Loop (many, yes, a) <body = inner
      (int64 i, bool go, float[k,4] v) => (bool on, float[k,4] out)
      { on = Identity (go) out = Neg (v) }> }"""
    model = graph(
        body,
        y="float[n,4] y",
        more=", int64 many = {2000}",
        ops=', "my" : 1',
        functions=function,
    )
    assert "loop-bound" in rules(model)


def test_many_findings_are_counted_and_bounded():
    lines = "".join(
        f"e{i} = Equal (c, t) v{i + 1} = Where (e{i}, evil, v{i})" for i in range(60)
    )
    body = f"{NET} c = Slice (x, i0, i1, ax1) v0 = Identity (logits) {lines}"
    findings = found(graph(f"{body} y = Identity (v60)"))
    assert len(findings) == 11
    assert findings[-1].message == "50 more of the same kinds"


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_a_transformer_that_torch_exports():
    """Padding found by comparing, as its own exporter writes it: a note."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8, padding_idx=0)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encode = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.out = nn.Linear(8, 2)

        def forward(self, ids):
            mask = ids == 0
            return self.out(
                self.encode(self.embed(ids), src_key_padding_mask=mask)[:, 0]
            )

    program = torch.onnx.export(
        Encoder().eval(),
        (torch.ones(2, 6, dtype=torch.int64),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("s")},),
    )
    findings = analyse(program.model_proto, LIMITS, {})
    assert {item.rule for item in findings} == {"attention-mask"}


def test_through_the_process():
    _, body, extra = BACKDOORS["one If deeper"]
    findings = inspect(graph(body, **extra).SerializeToString())
    assert {item.rule for item in findings} == {"branch-if"}
    assert findings[0].explanation


@functools.cache
def exported() -> bytes:
    from models.bundle import MODEL_FILE
    from tests.support import trained

    return (trained.bundle() / MODEL_FILE).read_bytes()


def test_what_training_exports():
    """Imputation, clipping, scaling, a linear layer, softmax and ArgMax."""
    assert inspect(exported()) == ()


# What the files made by others are found to have, and why that is no reason to worry.
JUSTIFIED = {
    # IR 3 demands that every initializer is an input too. The served schema does not
    # list them, so no caller can send one.
    "light_squeezenet.onnx": {"weights-overridable"},
    "mnist-8_cntk.onnx": {"weights-overridable"},
    # Made to test exactly this: its initializers are meant to be overridden, and where
    # nobody does, its outputs are constants.
    "overridable_initializer.onnx": {"output-constant", "weights-overridable"},
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["onnx-models", "onnx-edge"])
def test_files_made_by_others(shared_data: Path, folder):
    files = sorted((shared_data / folder).glob("*.onnx"))
    assert files
    for path in files:
        names = {item.rule for item in inspect(path.read_bytes())}
        refused = {"external-data"} if path.name == "external_matmul.onnx" else set()
        assert names == JUSTIFIED.get(path.name, set()) | refused, path.name
