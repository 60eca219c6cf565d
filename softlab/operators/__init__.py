"""The catalogue of attention operators: exact ones, approximations, and controls.

Each is a frozen dataclass of numbers called as ``op(q, k, v, key_mask=None)``; what all of them
promise is in ``softlab.core.Operator``.
"""

from softlab.operators.adaptive_sample import AdaptiveSample
from softlab.operators.attention_matching import AttentionMatching
from softlab.operators.band_low_rank import BandLowRank
from softlab.operators.big_bird import BigBird
from softlab.operators.clustered import Clustered
from softlab.operators.column_sample import ColumnSample
from softlab.operators.cos_former import CosFormer
from softlab.operators.gaussian_attention import GaussianAttention
from softlab.operators.hyper_attention import HyperAttention
from softlab.operators.kde_former import KDEFormer
from softlab.operators.linear_attention import LinearAttention
from softlab.operators.linformer import Linformer
from softlab.operators.local import Local
from softlab.operators.monarch import Monarch
from softlab.operators.mra import MRA
from softlab.operators.nystromformer import Nystromformer
from softlab.operators.pages import Pages
from softlab.operators.performer import Performer
from softlab.operators.quantized import Quantized
from softlab.operators.random_fourier import RandomFourier
from softlab.operators.reformer import Reformer
from softlab.operators.rp_cholesky import RPCholesky
from softlab.operators.scatterbrain import Scatterbrain
from softlab.operators.skeinformer import Skeinformer
from softlab.operators.sketched_taylor import SketchedTaylor
from softlab.operators.skyformer import Skyformer
from softlab.operators.soft import Soft
from softlab.operators.softmax import Softmax
from softlab.operators.taylor import Taylor
from softlab.operators.thinformer import Thinformer
from softlab.operators.top_k import TopK
from softlab.operators.truncated_svd import TruncatedSVD
from softlab.operators.uniform import Uniform

__all__ = [
    "MRA",
    "AdaptiveSample",
    "AttentionMatching",
    "BandLowRank",
    "BigBird",
    "Clustered",
    "ColumnSample",
    "CosFormer",
    "GaussianAttention",
    "HyperAttention",
    "KDEFormer",
    "LinearAttention",
    "Linformer",
    "Local",
    "Monarch",
    "Nystromformer",
    "Pages",
    "Performer",
    "Quantized",
    "RPCholesky",
    "RandomFourier",
    "Reformer",
    "Scatterbrain",
    "Skeinformer",
    "SketchedTaylor",
    "Skyformer",
    "Soft",
    "Softmax",
    "Taylor",
    "Thinformer",
    "TopK",
    "TruncatedSVD",
    "Uniform",
]
