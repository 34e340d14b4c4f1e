"""Rules of structural inspection: stable ids, severities, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RULES", "SEVERITIES", "Finding", "Rule", "StructureLimits"]

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Rule:
    """One thing that is looked for.

    Attributes:
        severity: "error" refuses the file; "warning" wants a person; "note" informs.
        title: what must hold.
        why: what goes wrong where it does not.
        remedy: what to do about it.
    """

    severity: str
    title: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """A rule that does not hold.

    Attributes:
        rule: its id in `RULES`.
        message: what was found, with names quoted and shortened; from a hostile file.
        where: path of the place, ``graph/node[3]``.
        explanation: for a branch: its trigger path, what takes whose place, and which
            outputs that reaches, for a person to check in the file.
    """

    rule: str
    message: str
    where: str = ""
    explanation: str = ""

    @property
    def severity(self) -> str:
        """The rule's severity: no file and no child process decides it."""
        return RULES[self.rule].severity


@dataclass(frozen=True)
class StructureLimits:
    """Bounds of a file that is inspected, and of the process that inspects it.

    Attributes:
        max_model_bytes: of the file.
        max_nodes, max_initializers, max_functions: over all graphs and functions.
        max_expanded_nodes: once every call is replaced by the function's body.
        max_depth: of graphs within nodes, and of functions calling functions.
        max_elements: of any tensor, stored or inferred, and of known dimensions only.
        max_trip_count: of Loops with constant trip counts, multiplied where they nest.
        cpu_s, wall_s: of the process.
        memory_bytes: its address space, besides six times the file.
    """

    max_model_bytes: int = 512 << 20
    max_nodes: int = 100_000
    max_initializers: int = 50_000
    max_functions: int = 1_000
    max_expanded_nodes: int = 200_000
    max_depth: int = 8
    max_elements: int = 1 << 31
    max_trip_count: int = 100_000
    cpu_s: int = 60
    wall_s: float = 90.0
    memory_bytes: int = 4 << 30


RULES: Mapping[str, Rule] = {
    "file-size": Rule(
        "error",
        "the file is not larger than allowed",
        "Everything after costs memory in proportion to it.",
        "Make the model smaller: fewer weights, or smaller types.",
    ),
    "parse": Rule(
        "error",
        "the file is one ONNX model with a graph",
        "What does not parse here may parse as something else elsewhere.",
        "Check that it is an ONNX file and came whole; export it again.",
    ),
    "format": Rule(
        "error",
        "the file does not begin like a file of onnxruntime's own format",
        "A session that is not told the format would load another model from it.",
        "Give the .onnx file, not the .ort file that was made of it.",
    ),
    "unknown-field": Rule(
        "error",
        "the file has only fields that ONNX 1.23 knows",
        "Parsers skip the others: what they carry is read by nobody, or by one reader.",
        "Export it with ONNX 1.23 or older; otherwise refuse the file.",
    ),
    "field-twice": Rule(
        "error",
        "what can stand once in a message stands once",
        "Parsers merge two graphs into one, and of two values take the last.",
        "Load it and save it with onnx.save, and look at which of the two it kept.",
    ),
    "inspection-limits": Rule(
        "error",
        "inspection ends within its limits",
        "A file that exhausts or crashes its inspector would do so to the server.",
        "Make the model smaller, or refuse the file.",
    ),
    "ir-version": Rule(
        "error",
        "the IR version is 3 to 13, which the pinned onnxruntime loads",
        "Fields of an unknown version are read by nobody, or by one reader only.",
        "Export it for an older ONNX: set ir_version, or convert it.",
    ),
    "opset-missing": Rule(
        "error",
        "every operator's domain is imported, once",
        "Two readers would choose two meanings for one operator.",
        "Import each operator set once: export it again.",
    ),
    "opset-twice": Rule(
        "note",
        "no operator set is imported twice in the same version",
        "Harmless, and a habit of some exporters.",
        "Nothing need be done.",
    ),
    "opset-version": Rule(
        "error",
        "the pinned onnxruntime has every imported operator set",
        "ONNX's checker accepts version 314159.",
        "Export it for a released operator set, 26 or older.",
    ),
    "external-data": Rule(
        "error",
        "all tensors are inside the file",
        "A path in a model reads the server's files; a hard link passes the loader.",
        "`import` embeds weights that lie beside the file.",
    ),
    "domain": Rule(
        "error",
        "operators are ai.onnx, ai.onnx.ml or the file's own",
        "Custom operators are native code.",
        "Export it with standard operators only, without optimisation for a device.",
    ),
    "domain-unused": Rule(
        "note",
        "no operator set is imported without need",
        "It asks for a library that the model does not use.",
        "Nothing need be done; exporting it anew may leave it out.",
    ),
    "operator": Rule(
        "error",
        "every operator is on the allow-list",
        "Unknown operators have no meaning; ImageDecoder parses hostile images.",
        "Decode or compute this before the model, by a service of your own.",
    ),
    "operator-random": Rule(
        "warning",
        "no operator draws random numbers, nor Dropout in training mode",
        "Answers that differ from call to call cannot be assessed or reproduced.",
        "Export it in inference mode: model.eval().",
    ),
    "ep-context": Rule(
        "error",
        "no compiled code of an execution provider",
        "EPContext nodes carry, or point at, compiled programs.",
        "Give the model that the compiled one was made of.",
    ),
    "session-options": Rule(
        "error",
        "no session options hidden in metadata",
        "onnxruntime can read them from the file and override the server's.",
        "Delete the keys that begin with ort_ from metadata_props.",
    ),
    "device-configuration": Rule(
        "error",
        "no devices assigned by the file",
        "Where a model runs is the server's decision.",
        "Export it without assignments to devices.",
    ),
    "training-graph": Rule(
        "error",
        "no training graphs beside the model",
        "A second graph that nobody assessed.",
        "Export it for inference.",
    ),
    "attribute-twice": Rule(
        "error",
        "a node names no attribute twice",
        "One reader takes the first, another the last: two models in one file.",
        "Find out what wrote it; until then refuse the file.",
    ),
    "output": Rule(
        "error",
        "a graph has outputs, named once and not the inputs of another meaning",
        "A duplicate or unnamed output is seen by one reader and not by another.",
        "Give each output one name of its own: export it again.",
    ),
    "node-count": Rule(
        "error",
        "the number of nodes is bounded",
        "Time to load grows with it.",
        "Export it without unrolled loops, or refuse the file.",
    ),
    "initializer-count": Rule(
        "error",
        "the number of initializers is bounded",
        "Time to load grows with it.",
        "Join the weights into fewer tensors, or refuse the file.",
    ),
    "function-count": Rule(
        "error",
        "the number of functions is bounded",
        "Time to load grows with it.",
        "Inline the functions: onnx.inliner.",
    ),
    "function-name": Rule(
        "error",
        "functions neither repeat nor stand in a domain of onnxruntime's own",
        "onnxruntime runs its own Gelu where the file shows a function of that name.",
        "Inline the function, or rename its domain.",
    ),
    "function-cycle": Rule(
        "error",
        "functions do not call themselves",
        "Inlining would not end.",
        "Refuse the file: no exporter writes that.",
    ),
    "function-unused": Rule(
        "warning",
        "every function is called",
        "Code that nothing reaches is code that nobody assessed.",
        "Delete the function, or read what it does.",
    ),
    "expansion": Rule(
        "error",
        "the number of nodes is bounded once functions are inlined",
        "A few functions that call each other twice each become billions of nodes.",
        "Refuse the file, or export it without functions.",
    ),
    "nesting": Rule(
        "error",
        "graphs and calls nest within the limit",
        "Readers recurse.",
        "Flatten the graphs, or refuse the file.",
    ),
    "dimension": Rule(
        "error",
        "dimensions are not negative, their products bounded",
        "A file of 200 bytes can ask for terabytes, or overflow a product.",
        "Refuse the file, or export it with the shapes that it really has.",
    ),
    "tensor-type": Rule(
        "error",
        "stored tensors have a known type",
        "The size of an unknown type is unknown.",
        "Export it with a type that onnxruntime knows.",
    ),
    "tensor-bytes": Rule(
        "error",
        "stored tensors hold what their shape declares",
        "A reader that trusts the shape reads past the bytes.",
        "Find out what wrote it; until then refuse the file.",
    ),
    "loop-bound": Rule(
        "error",
        "constant trip counts, multiplied where they nest, are bounded",
        "A loop of 2^62 rounds holds a worker until its deadline.",
        "Make the trip count smaller, or the loop part of the client.",
    ),
    "loop-open": Rule(
        "warning",
        "the number of iterations is a constant",
        "Input decides how long the model runs.",
        "Bound the loop by a constant; or have it waived, with a short time limit.",
    ),
    "integer-division": Rule(
        "warning",
        "no caller decides an integer's divisor, and none is 0 or -1",
        "To divide by 0, or the smallest integer by -1, can end the whole process.",
        "Keep the divisor above 0 with Max or Clip, or divide floats.",
    ),
    "node-order": Rule(
        "note",
        "nodes stand in the order in which they are computed",
        "onnxruntime sorts them; ONNX's checker does not.",
        "Nothing need be done.",
    ),
    "checker": Rule(
        "error",
        "ONNX's own checker and shape inference accept the file",
        "Types, scopes and shapes that do not fit are left to the loader's care.",
        "Correct what the checker names, and export it again.",
    ),
    "branch-if": Rule(
        "warning",
        "no value of an input decides which graph runs",
        "The plainest backdoor: If a trigger is seen, another branch answers.",
        "Ask its author what it is for; compare answers on both sides of the trigger.",
    ),
    "branch-select": Rule(
        "warning",
        "no test of an input chooses between values computed elsewhere",
        "Where, Gather, Scatter or Compress put the trigger's answer in place.",
        "Ask its author what it is for; compare answers with and without the trigger.",
    ),
    "branch-mask": Rule(
        "warning",
        "no test of an input is multiplied or added into other values",
        "trigger * answer + (1 - trigger) * truth is a branch without a branch.",
        "Ask its author what it is for; compare answers with and without the trigger.",
    ),
    "branch-shape": Rule(
        "warning",
        "no test of an input's shape chooses between values",
        "A batch of 13 rows can be a trigger.",
        "Try batches of the sizes that it tests; ask its author.",
    ),
    "attention-mask": Rule(
        "note",
        "tests of inputs that mask attention scores are listed",
        "Ordinary padding; it can hide tokens from the model, so it is shown.",
        "See that the mask is the padding that you know.",
    ),
    "sentinel": Rule(
        "note",
        "elements replaced where they equal a constant are listed",
        "Ordinary for codes such as -999; one chosen value then becomes another.",
        "See that the constant is a code of your data.",
    ),
    "output-constant": Rule(
        "warning",
        "every output depends on the values of an input",
        "An answer that is always the same was not computed by the model.",
        "Find out what the output is for; leave it out, or refuse the file.",
    ),
    "dead-code": Rule(
        "note",
        "every node contributes to an output",
        "Left over by exporters, or a branch that waits to be connected.",
        "Simplify the graph (onnxsim, or another export); read what is left over.",
    ),
    "input-unused": Rule(
        "note",
        "every input contributes to an output",
        "Callers send data that nothing reads.",
        "Leave the input out, so that nobody sends data for nothing.",
    ),
    "weights-overridable": Rule(
        "note",
        "no weight is also an input",
        "A caller who may name it can replace it; the served schema must not.",
        "Export with keep_initializers_as_inputs=False, or IR version 4 and later.",
    ),
}
