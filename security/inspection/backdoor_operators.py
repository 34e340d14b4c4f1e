"""Groups of ONNX operators, by what they do to the elements that pass through."""

from __future__ import annotations

__all__ = [
    "COLLECTS",
    "INDEXED",
    "LINEAR",
    "POINTWISE",
    "RAGGED",
    "RESHAPES",
    "ROUNDING",
    "SATURATING",
    "SCALINGS",
    "SCATTERS",
    "SELECTS",
    "SHAPED",
    "TESTS",
    "VIEWS",
]


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operands decide which elements are taken.
SELECTS = _set(
    """
    ArrayFeatureExtractor Compress Expand Gather GatherElements GatherND Pad
    Reshape Resize Scatter ScatterElements ScatterND SequenceAt Slice
    TensorScatter Tile
    """
)
# The second operand is an index into the first.
INDEXED = _set(
    """
    ArrayFeatureExtractor Gather GatherElements GatherND SequenceAt
    """
)
# The second operand is an index of what is written over.
SCATTERS = _set(
    """
    Scatter ScatterElements ScatterND SequenceInsert TensorScatter
    """
)
# Operands lie side by side in the result.
COLLECTS = _set(
    """
    Body Concat ConcatFromSequence Dropout FeatureVectorizer Phi
    SequenceConstruct SequenceInsert
    """
)
# Each element of the result is a function of one element of each operand.
POINTWISE = _set(
    """
    Abs Add And Atan Binarizer BitShift BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Cast CastLike Ceil Celu Clip Cos DequantizeLinear Div Dropout Elu
    Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
    Identity IsInf IsNaN LabelEncoder LeakyRelu Less LessOrEqual Log Max Mean
    Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round
    Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
    ThresholdedRelu Where Xor
    """
)
# The same elements in another shape, order or selection.
VIEWS = _set(
    """
    Cast Expand Flatten Gather Identity Reshape Slice Split Squeeze Transpose
    Unsqueeze
    """
)
# Learned layers that mix elements.
LINEAR = _set(
    """
    Attention Conv ConvInteger ConvTranspose DeformConv Einsum GRU Gemm LSTM
    LinearClassifier LinearRegressor MatMul MatMulInteger QLinearConv
    QLinearMatMul RNN SVMClassifier SVMRegressor TreeEnsemble
    TreeEnsembleClassifier TreeEnsembleRegressor
    """
)
# What comes out of these is the result of a test, whatever type it has.
TESTS = _set(
    """
    ArgMax ArgMin Binarizer BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    CategoryMapper Equal Greater GreaterOrEqual Hardmax IsInf IsNaN LabelEncoder
    Less LessOrEqual Mod NonMaxSuppression NonZero OneHot OneHotEncoder
    RegexFullMatch Sign TreeEnsemble TreeEnsembleClassifier
    TreeEnsembleRegressor Unique
    """
)
# A test, once something steep goes in.
SATURATING = _set(
    """
    Clip Erf HardSigmoid Max Min Sigmoid Softsign Tanh
    """
)
# A test, once something of few levels goes in.
ROUNDING = _set(
    """
    Cast Ceil Floor Round
    """
)
# The values of their operands decide how many elements there are.
RAGGED = _set(
    """
    Compress NonMaxSuppression NonZero StringSplit Unique
    """
)
# Operands after the first decide how many elements there are.
SHAPED = _set(
    """
    ConstantOfShape Expand OneHot Pad Reshape Resize Slice Split Tile TopK
    """
)
# Multiply or move all elements alike, if the other operand is constant.
SCALINGS = _set(
    """
    Abs Add Cast Div Identity Mul Neg Reshape Squeeze Sub
    """
)
# All elements, in order, in another shape.
RESHAPES = _set(
    """
    Flatten Identity Reshape Squeeze Unsqueeze
    """
)
