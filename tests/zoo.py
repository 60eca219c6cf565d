"""One line for every operator, solver and selector; all laws run over these lists."""

from softlab.landmarks import SegmentMeans, Strided, UniformRandom
from softlab.operators import (
    GaussianAttention,
    Nystromformer,
    Soft,
    Softmax,
    TruncatedSVD,
    Uniform,
)
from softlab.pinv import (
    SVD,
    Cholesky,
    ImplicitGradient,
    NewtonRaphson,
    NystromformerCubic,
    Ridge,
)

OPERATORS = [
    Softmax(),
    Softmax(scale=0.7),
    GaussianAttention(),
    GaussianAttention(bandwidth=1.3),
    GaussianAttention(normalization="row"),
    GaussianAttention(normalization="symmetric"),
    Soft(rank=4),
    Soft(rank=5, bandwidth=1.3, landmarks=Strided()),
    Soft(rank=3, landmarks=UniformRandom(seed=1), pinv=SVD()),
    Soft(rank=4, normalization="row"),
    Soft(rank=4, normalization="symmetric"),
    Soft(rank=4, normalization="published"),
    Soft(rank=4, pinv=ImplicitGradient(NewtonRaphson(steps=24))),
    Soft(rank=4, pinv=Ridge(Cholesky(), ridge=0.01)),
    Nystromformer(rank=4),
    Nystromformer(rank=3, pinv=SVD(), landmarks=Strided()),
    Uniform(),
    Uniform(target=GaussianAttention()),
    TruncatedSVD(rank=3),
    TruncatedSVD(rank=3, target=GaussianAttention()),
]

SOLVERS = [
    SVD(),
    Cholesky(),
    NewtonRaphson(steps=24),
    NystromformerCubic(steps=14),
    Ridge(SVD(), ridge=0.01),
    Ridge(NewtonRaphson(steps=24), ridge=0.01),
    ImplicitGradient(NewtonRaphson(steps=24)),
]

SELECTORS = [SegmentMeans(), Strided(), UniformRandom(seed=3)]
