"""One line for every operator, solver and selector; all laws run over these lists."""

from softlab.features import IID, SORF, Orthogonal, QuasiMonteCarlo
from softlab.landmarks import SegmentMeans, Strided, UniformRandom
from softlab.operators import (
    ColumnSample,
    GaussianAttention,
    Linformer,
    Nystromformer,
    Skyformer,
    Soft,
    Softmax,
    TopK,
    TruncatedSVD,
    Uniform,
)
from softlab.pinv import (
    SVD,
    BestIterate,
    Chebyshev,
    Checkpointed,
    Cholesky,
    ConjugateGradients,
    Frobenius,
    GolubPereyra,
    Hyperpower,
    ImplicitGradient,
    InfinityNorm,
    KrylovEstimate,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    OneNorm,
    Optimal,
    OptimalDefinite,
    Polished,
    PowerEstimate,
    PublishedNystromformer,
    PublishedSoftNorm,
    Purified,
    Ridge,
    SketchedFit,
    Trace,
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
    Soft(rank=4, pinv=Ridge(ConjugateGradients(steps=8), ridge=0.01)),
    Soft(rank=4, pinv=Purified(NewtonRaphson(steps=24))),
    Nystromformer(rank=4),
    Nystromformer(rank=3, pinv=SVD(), landmarks=Strided()),
    Uniform(),
    Uniform(target=GaussianAttention()),
    TruncatedSVD(rank=3),
    TruncatedSVD(rank=3, target=GaussianAttention()),
    ColumnSample(rank=4),
    ColumnSample(rank=3, seed=2),
    TopK(k=3),
    TopK(p=0.8),
    Linformer(rank=4),
    Linformer(rank=3, seed=2, sharing="key-value"),
    Skyformer(rank=4),
    Skyformer(rank=5, gamma=0.01, bandwidth=1.3, landmarks=Strided(), pinv=Cholesky()),
    Skyformer(rank=3, gamma=0.0, landmarks=UniformRandom(seed=1), pinv=SVD()),
]

SOLVERS = [
    SVD(),
    Cholesky(),
    NewtonRaphson(steps=24),
    Hyperpower(order=2, steps=24),
    Hyperpower(order=3, steps=15),
    Hyperpower(order=4, steps=12),
    Hyperpower(order=5, steps=11),
    Hyperpower(order=7, steps=9),
    NystromformerCubic(steps=14),
    Chebyshev(steps=14, degree=2),
    Chebyshev(steps=10, degree=3),
    Chebyshev(steps=16, degree=2, definite=True),
    Minimax(condition=1e3, steps=7, degree=5),
    Minimax(condition=30.0, steps=9, degree=3, scaling=NormProduct(1.0)),
    Minimax(condition=1e3, steps=8, degree=4, scaling=InfinityNorm()),
    SketchedFit(steps=14),
    SketchedFit(steps=14, scaling=InfinityNorm()),
    ConjugateGradients(steps=40),
    Ridge(SVD(), ridge=0.01),
    Ridge(NewtonRaphson(steps=24), ridge=0.01),
    Purified(NewtonRaphson(steps=40)),
    Purified(Chebyshev(steps=20)),
    BestIterate(NewtonRaphson(steps=40)),
    BestIterate(Hyperpower(steps=20)),
    Polished(NewtonRaphson(steps=30), steps=2),
    Polished(NewtonRaphson(steps=30), precision="bfloat16", steps=4),
    ImplicitGradient(NewtonRaphson(steps=24)),
    GolubPereyra(NewtonRaphson(steps=24)),
    GolubPereyra(SVD()),
    Checkpointed(NewtonRaphson(steps=24)),
    Checkpointed(Chebyshev(steps=10), every=3),
]

SCALINGS = [
    NormProduct(1.0),
    OneNorm(1.8),
    Frobenius(),
    Optimal(),
    PowerEstimate(),
    KrylovEstimate(),
    InfinityNorm(),
    Trace(),
    OptimalDefinite(),
]

SOLVERS += [NewtonRaphson(steps=26, scaling=scaling) for scaling in SCALINGS]

FIDELITY = [
    NystromformerCubic(steps=14, scaling=PublishedNystromformer()),
    NewtonRaphson(steps=26, scaling=PublishedSoftNorm()),
]
"""Published code with its defects, which the laws exempt by name."""

SELECTORS = [SegmentMeans(), Strided(), UniformRandom(seed=3)]

WEIGHTS = [
    IID(seed=2),
    Orthogonal(seed=3),
    SORF(seed=1),
    QuasiMonteCarlo(seed=2),
    QuasiMonteCarlo(seed=1, sequence="halton"),
]
