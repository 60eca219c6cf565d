"""One attention head drawn in float64, with which tests of operators begin."""

import torch


def head_of(n, l, d=4):
    """A function that draws q (n, d), k (l, d) and v (l, 3), of other sizes where it is asked."""

    def draw(n=n, l=l, d=d, scale=1.0, seed=0):
        g = torch.Generator().manual_seed(seed)
        sizes = (n, d), (l, d), (l, 3)
        q, k, v = (torch.randn(s, generator=g, dtype=torch.float64) for s in sizes)
        return scale * q, scale * k, v

    return draw
