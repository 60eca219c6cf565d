"""Certificates of Nystrom approximations: what a kernel keeps from its landmarks.

A positive definite kernel K with K(x, x) = 1 and landmarks z (m of them), A = K(z, z), c_x =
K(x, z). Line by line, for any points x and y, be they queries or keys, tied or not:

1. With any matrix M for which M A M^T <= I, let w_x = M c_x. The matrix of K on x, y and z is
   positive semidefinite, and so is what is left of it, R(x, y) = K(x, y) - <w_x, w_y>: it is a
   Schur complement for M^T M = A^-1, and more is left where M^T M <= A^+ is smaller.
2. So |R(x, y)| <= sqrt(R(x, x) R(y, y)), with R(x, x) = 1 - |w_x|^2 in m^2 operations.
3. Let S_x = sum_j <w_x, w_j> v_j. Then exact_x - S_x = sum_j R(x, y_j) v_j = sum_j <r_x, r_j> v_j
   with vectors of lengths sqrt(R), and for a unit vector a

       |<a, exact_x - S_x>| <= sqrt(R(x, x)) |sum_j <a, v_j> r_j|
                            <= sqrt(R(x, x)) sum_j sqrt(R(y_j, y_j)) |<a, v_j>|.

   By Cauchy and Schwarz with weights sqrt(R_j) / |v_j| the last sum is at most the root of
   t lambda, t = sum_j sqrt(R_j) |v_j| and lambda the largest eigenvalue of the matrix
   sum_j (sqrt(R_j) / |v_j|) v_j v_j^T, whose trace is t: never above t, and a sqrt(e)-th of it
   where values point everywhere.
4. Whatever an operator answers, |out - exact| <= |out - S| + |S - exact|, the first of them
   measured. So an inverse that has not converged, a shift, half precision and plain mistakes enter
   as what they do to the output, per matrix and per row, and no claim about a solver is needed.
5. Where M^T M is A^-1 to within theta, 0 <= I - M A M^T <= theta, a point that is itself a landmark
   has R_A = 0, and S differs from K(x, z) A^-1 K(z, y) v by theta / (1 - theta) |w_x| sum |w_j|
   |v_j| at most: this is the rounding to which the bound falls at full rank.

M is made in float64 from the eigenvectors of A, those left out whose eigenvalue is so small that
rounding would exceed them. That M A M^T <= I is not believed but computed: with T its rounded value
and tau >= |T - I| on the kept part, M / sqrt(1 + tau) has it. Rounding in w_x is at most
eta_x = chain(m) u |M| |c_x| + eps_c |M 1| in length, eps_c the error of a kernel value: a computed
|w_x| less eta_x makes R no smaller than it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softlab.core import norm
from softlab.kernels import Gaussian
from softlab.landmarks.selector import take
from softlab.primitives.certificates import chain, distance, lengths, root, unit

HELD = 1 << 22
"""Kernel entries held at once, beside what is kept of them."""


class Features(NamedTuple):
    """Points in the space of the landmarks: w (..., n, m), the error of their lengths eta (..., n),
    the residual's diagonal R (..., n), and which points are landmarks (..., n).
    """

    w: Tensor
    eta: Tensor
    residual: Tensor
    known: Tensor


class Landmarks:
    """Landmarks z (..., m, d) of a Gaussian, and their M.

    ``shrink`` (..., 1): 1 / (1 + tau); ``theta`` (..., 1): theta / (1 - theta), infinite where M
    leaves eigenvectors out; ``size`` and ``of_ones``: bounds of the norms of |M| and of |M| 1.
    """

    def __init__(self, kernel: Gaussian, z: Tensor) -> None:
        self.kernel, self.z = kernel, z
        m, u, fine = z.shape[-2], unit(z), torch.finfo(torch.float64).eps / 2
        wide = z.double()
        core = kernel.matrix(wide, wide)
        core = (core + core.mT) / 2
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(core)
            cut = max((m * u) ** (2 / 3), (m * fine) ** 0.5) * values[..., -1:]
            kept = values >= cut
            scale = torch.where(kept, values, 1).rsqrt() * kept
            self.m = (scale.unsqueeze(-1) * vectors.mT).to(z.dtype)
            self._certain(core, kept, fine)
        if core.requires_grad:
            self.m = self.m + _moving(core, values, vectors, kept, scale).to(z.dtype)

    def _certain(self, core: Tensor, kept: Tensor, fine: float) -> None:
        """What rounding leaves of M A M^T <= I, and the norms of M."""
        z, m = self.z, self.z.shape[-2]
        mixed, size = self.m.double(), self.m.double().abs()
        found = mixed @ core @ mixed.mT - torch.diag_embed(kept.double())
        rounded = (2 * chain(m) + 4) * fine * torch.linalg.matrix_norm(size @ core @ size.mT)
        sums = size.sum(-1).square().sum(-1)
        entries = (z.shape[-1] + 12) * fine * sums
        tau = torch.linalg.matrix_norm(found) + rounded + entries
        self.shrink = (1 / (1 + tau)).to(z.dtype).unsqueeze(-1)
        theta = 2 * tau / (1 + tau)
        sound = kept.all(-1) & (theta < 0.5)
        self.theta = torch.where(sound, theta / (1 - theta), math.inf).to(z.dtype).unsqueeze(-1)
        one = torch.linalg.matrix_norm(self.m, 1) * torch.linalg.matrix_norm(self.m, math.inf)
        least = torch.minimum(one.sqrt(), torch.linalg.matrix_norm(self.m))
        self.size = least.unsqueeze(-1)
        self.of_ones = sums.sqrt().to(z.dtype).unsqueeze(-1)

    def features(self, x: Tensor) -> Features:
        """What the landmarks know of points x (..., n, d), a block of them at a time."""
        rows = max(1, HELD // (self.z.shape[:-1].numel()))
        parts = [self._some(part) for part in x.split(rows, -2)]
        if len(parts) == 1:
            return parts[0]
        w, *rest = zip(*parts, strict=True)
        eta, residual, known = (torch.cat(each, -1) for each in rest)
        return Features(torch.cat(w, -2), eta, residual, known)

    def _some(self, x: Tensor) -> Features:
        m, u = self.z.shape[-2], unit(x)
        c = self.kernel.matrix(x, self.z)
        w = c @ self.m.mT
        # exp(-E) with E off by some chain(d) u E, and E exp(-E) < 0.37.
        entry = (0.37 * (chain(x.shape[-1]) + 8) + 4) * u
        eta = 1.01 * ((chain(m) + 2) * u * self.size * lengths(c) + entry * self.of_ones)
        length = lengths(w)
        certain = (length * (1 - 2 * (chain(m) + 2) * u) - eta).clamp_min(0)
        residual = (1 - self.shrink * certain.square() * (1 - 8 * u)).clamp_min(0) + 2 * u
        near = take(self.z, c.argmax(-1))
        return Features(w, eta, residual, (near == x).all(-1))

    def sums(self, x: Features, y: Features, v: Tensor) -> tuple[Tensor, Tensor]:
        """S (..., n, e) for values v (..., l, e), and at least |S - exact|, (..., n)."""
        u, m, l = unit(v), x.w.shape[-1], v.shape[-2]
        found = self.shrink.unsqueeze(-1) * (x.w @ (y.w.mT @ v))
        size, of_x = lengths(v), lengths(x.w)
        rounding = 1 + 4 * chain(l) * u
        whole = (lengths(y.w) * size).sum(-1, keepdim=True) * rounding
        off = (y.eta * size).sum(-1, keepdim=True) * rounding
        own = x.eta * (whole + off) + of_x * off
        own = own + (chain(l) + chain(m) + 8) * u * of_x * whole
        plain = root(x.residual) * _reach(y.residual, v)
        # Of landmarks nothing is left, where M^T M is the inverse.
        some = _reach(torch.where(y.known, 0, y.residual), v)
        exact = root(torch.where(x.known, 0, x.residual)) * some
        theta = torch.where(self.theta.isfinite(), self.theta, 0)
        exact = exact + theta * of_x * whole
        exact = torch.where(self.theta.isfinite(), exact, math.inf)
        return found, torch.minimum(plain, exact) * rounding + own


def _moving(core: Tensor, values: Tensor, vectors: Tensor, kept: Tensor, scale: Tensor) -> Tensor:
    """Zero, with the derivative of M: of eigenvectors alone it would divide by equal eigenvalues.

    M is known up to an orthogonal factor on its left, which no length and no product of features
    sees. With A = U diag(lambda) U^T and D = U^T dA U, row i of dM is lambda_i^(-1/2) sum_j D_ij
    F_ij u_j^T: F_ij = -1 / (2 lambda_j) between kept eigenvectors, where it keeps M A M^T = I, and
    1 / (lambda_i - lambda_j) to those left out, where it turns the space of M.
    """
    i, j = values.unsqueeze(-1), values.unsqueeze(-2)
    out = ~kept.unsqueeze(-2) & kept.unsqueeze(-1)
    turned = torch.where(out, i - j, 1).reciprocal()
    shares = torch.where(out, turned, torch.where(kept.unsqueeze(-2), -0.5 / j, 0))
    moved = vectors.mT @ (core - core.detach()) @ vectors
    return scale.unsqueeze(-1) * ((moved * shares) @ vectors.mT)


def _reach(residual: Tensor, v: Tensor) -> Tensor:
    """sqrt(t lambda) of line 3, (..., 1)."""
    size, each = lengths(v), root(residual)
    whole = (each * size).sum(-1, keepdim=True)
    # Of lengths whose square is no number the trace takes the place of the matrix.
    plain = size > math.sqrt(torch.finfo(v.dtype).tiny)
    weight = torch.where(plain, each / torch.where(plain, size, 1), 0)
    gram = v.mT @ (weight.unsqueeze(-1) * v)
    rest = torch.where(plain, 0, each * size).sum(-1, keepdim=True)
    # A norm in the place of the eigenvalue, which is not above it: the largest sum of magnitudes
    # is none either, and the root of the sum of squares is the nearer where values point apart.
    largest = norm(gram, (-2, -1)).unsqueeze(-1) + rest
    largest = torch.minimum(largest, whole) + 4 * chain(v.shape[-2]) * unit(v) * whole
    return root(whole * torch.minimum(largest, whole))


def apart(kernel: Gaussian, z: Tensor, x: Tensor, y: Tensor, v: Tensor, out: Tensor) -> Tensor:
    """At least |out_i - sum_j K(x_i, y_j) v_j|, (..., n): lines 1 to 5 above.

    z (..., m, d), x (..., n, d), y (..., l, d), v (..., l, e), zeros at masked keys; out
    (..., n, e).
    """
    landmarks = Landmarks(kernel, z)
    of_y = landmarks.features(y)
    of_x = of_y if x is y else landmarks.features(x)
    found, most = landmarks.sums(of_x, of_y, v)
    return distance(out, found) + most


def average_apart(
    kernel: Gaussian,
    z: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    weight: Tensor,
    out: Tensor,
    radius: Tensor,
) -> Tensor:
    """At least |out_i - exact_i| for exact_i = sum_j K_ij g_j v_j / sum_j K_ij g_j, (..., n).

    With N = sum_j K_ij g_j v_j and D = sum_j K_ij g_j, out - exact = (out D - N) / D. Lines 1 to 5
    give N' and D' with |N' - N| <= b and |D' - D| <= beta, so that

        |out - exact| <= (|out D' - N'| + |out| beta + b) / (D' - beta)   where D' > beta,

    and |out| + radius always: exact is an average of values of norm ``radius`` at most. v (..., l,
    e) and out are less a point amid the values; ``weight`` g (..., l, 1) >= 0, 0 at masked keys.
    """
    landmarks = Landmarks(kernel, z)
    of_y = landmarks.features(y)
    of_x = of_y if x is y else landmarks.features(x)
    numerator, b = landmarks.sums(of_x, of_y, weight * v)
    degree, beta = landmarks.sums(of_x, of_y, weight)
    b = b + 2 * unit(v) * chain(v.shape[-2]) * radius * degree.squeeze(-1).abs()
    least = degree.squeeze(-1) - beta
    size = lengths(out)
    missed = distance(out * degree, numerator) + size * beta + b
    missed = missed + 4 * unit(v) * size * degree.squeeze(-1).abs()
    hull = size + radius
    sound = least > 0
    found = torch.where(sound, missed / torch.where(sound, least, 1) * (1 + 16 * unit(v)), math.inf)
    return torch.minimum(found, hull)
