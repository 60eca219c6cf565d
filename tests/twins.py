"""Plain twins: every operator once more, dense and naive, written from the papers' formulas.

A twin treats one head at a time, deletes masked keys instead of masking them, forms every matrix,
and works in the dtype that it is given. Of softlab it imports the names that it dispatches on, and
for UniformRandom the drawn indices; no arithmetic.
"""

import dataclasses
import math
from functools import singledispatch
from itertools import product
from typing import get_type_hints

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import bringing

from softlab import landmarks, operators, pinv
from softlab.core import Stream

F64 = torch.float64


def twin(op, q, k, v, key_mask=None):
    """What ``op(q, k, v, key_mask)`` must return, head by head."""
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
    keep = torch.ones(k.shape[:-1], dtype=torch.bool)
    keep = keep if key_mask is None else key_mask.expand(keep.shape)
    heads = product(*map(range, lead))
    of_head = causal_head if op.traits.causal else kept_head
    out = [of_head(op, q[i], k[i], v[i], keep[i]) for i in heads]
    return torch.stack(out).reshape(*lead, *out[0].shape)


def kept_head(op, q, k, v, keep):
    return head(op, q, k[keep], v[keep])


def causal_head(op, q, k, v, keep):
    """One head, masked tokens deleted whole: row by row where a row is that of its own prefix."""
    q, k, kept = q[keep], k[keep], v[keep]
    if isinstance(op, (*PREFIX, operators.Uniform)):
        plain = dataclasses.replace(op, **{"causal": False} if isinstance(op, PREFIX) else {})
        rows = [head(plain, q[i : i + 1], k[: i + 1], kept[: i + 1]) for i in range(len(q))]
        return torch.zeros_like(v).index_put((keep,), torch.cat(rows))
    return torch.zeros_like(v).index_put((keep,), head(op, q, k, kept))


def brought(dispatch, subject):
    """The twin that a test file brings, ``def twin(op: Mine, ...)``, registered from now on."""
    for module in bringing("def twin("):
        (kind, *_) = get_type_hints(module.twin).values()
        if isinstance(subject, kind):
            dispatch.register(kind, module.twin)
            return module.twin
    raise NotImplementedError(type(subject))


PREFIX = operators.Softmax, operators.GaussianAttention, operators.TopK, operators.Quantized


@singledispatch
def head(op, q, k, v):
    """One head: q (n, d), k (l, d), v (l, e) -> (n, e)."""
    return brought(head, op)(op, q, k, v)


@head.register
def _(op: operators.Softmax, q, k, v):
    scale = q.shape[-1] ** -0.5 if op.scale is None else op.scale
    return torch.softmax(scale * (q @ k.mT), -1) @ v


@head.register
def _(op: operators.GaussianAttention, q, k, v):
    s = q.shape[-1] ** 0.25 if op.bandwidth is None else op.bandwidth
    S = gaussian(q, k, s)
    if op.normalization == "none":
        return S @ v
    if op.normalization == "row":  # a row's sum is read off the matrix: no product
        return (S / S.sum(-1, keepdim=True)) @ v
    ones = torch.ones_like(v[:, :1])
    of_queries, of_keys = S @ ones, gaussian(k, k, s) @ ones
    return (of_queries**-0.5 * S * of_keys.mT**-0.5) @ v


@head.register
def _(op: operators.Soft, q, k, v):
    s = q.shape[-1] ** 0.25 if op.bandwidth is None else op.bandwidth
    z = points(op.landmarks, k, op.rank)
    ones = torch.ones_like(v[:, :1])
    A = gaussian(z, z, s)
    invert = inverted(op.pinv, A)
    D = A.sum(-1, keepdim=True) ** -0.5 if op.normalization == "published" else 1

    # As the method is meant to run: a kernel matrix is formed where it is used, and not kept.
    def S(x, columns):
        return gaussian(x, z, s) @ (D * invert(D * (gaussian(z, k, s) @ columns)))

    if op.normalization in ("none", "published"):
        return S(q, v)
    if op.normalization == "row":
        both = S(q, torch.cat((v, ones), -1))
        return both[:, :-1] / both[:, -1:]
    weights = invert(gaussian(z, k, s) @ ones)
    of_keys = power(gaussian(k, z, s) @ weights)
    inner = invert(gaussian(z, k, s) @ (of_keys * v))
    both = gaussian(q, z, s) @ torch.cat((inner, weights), -1)
    return power(both[:, -1:]) * both[:, :-1]


@head.register
def _(op: operators.Nystromformer, q, k, v):
    z_q, z_k = (points(op.landmarks, x, op.rank) for x in (q, k))
    d = q.shape[-1]
    F = torch.softmax(q @ z_k.mT / d**0.5, -1)
    A = torch.softmax(z_q @ z_k.mT / d**0.5, -1)
    B = torch.softmax(z_q @ k.mT / d**0.5, -1)
    return F @ (inverse(op.pinv, A) @ (B @ v))


@head.register
def _(op: operators.Uniform, q, k, v):
    return v.mean(0).expand(len(q), v.shape[-1])


@head.register
def _(op: operators.TruncatedSVD, q, k, v):
    M = head(op.target, q, k, torch.eye(len(k), dtype=k.dtype))
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    m = op.rank
    return U[:, :m] @ (s[:m, None] * (Vh[:m] @ v))


@head.register
def _(op: operators.Performer, q, k, v):
    d, hyperbolic = q.shape[-1], op.estimator == "hyperbolic"
    scale = d**-0.5 if op.scale is None else op.scale
    w = op.weights(op.features // 2 if hyperbolic else op.features, d).to(q.dtype)

    def phi(x, published_max):
        x = scale**0.5 * x
        logs = x @ w.mT
        logs = torch.cat((logs, -logs), -1) if hyperbolic else logs
        half = (x * x).sum(-1, keepdim=True) / 2
        if op.estimator == "optimal":
            f = scale * (q[:, None] + k).square().sum(-1).mean()
            rho = op.rho or (((2 * f + d) ** 2 + 8 * f * d) ** 0.5 - 2 * f - d) / (4 * f)
            A = (1 - 1 / rho) / 8
            logs = A * w.square().sum(-1) + (1 - 4 * A) ** 0.5 * logs
            return (1 - 4 * A) ** (d / 4) * torch.exp(logs - half) / op.features**0.5
        if op.eps:
            logs = logs - published_max(logs)
        return (torch.exp(logs - half) + op.eps) / op.features**0.5

    phi_q = phi(q, lambda logs: logs.amax(-1, keepdim=True))
    return linear_attention(phi_q, phi(k, lambda logs: logs.max()), v, op.causal)


@head.register
def _(op: operators.RandomFourier, q, k, v):
    gaussian_target = isinstance(op.target, operators.GaussianAttention)
    d, given = q.shape[-1], op.target.bandwidth if gaussian_target else op.target.scale
    if gaussian_target:
        root = 1 / (d**0.25 if given is None else given)
    else:
        root = (d**-0.5 if given is None else given) ** 0.5
    w = op.weights(op.features // 2, d).to(q.dtype)

    def phi(x):
        x = root * x
        angle = x @ w.mT
        waves = torch.cat((angle.cos(), angle.sin()), -1) / len(w) ** 0.5
        return waves if gaussian_target else torch.exp((x * x).sum(-1, keepdim=True) / 2) * waves

    phi_q, phi_k = phi(q), phi(k)
    out, degree = gathered(phi_q, phi_k, v, op.target.causal)
    if gaussian_target and op.target.normalization == "none":
        return out
    return torch.where(degree > 0, out / torch.where(degree > 0, degree, 1), 0)


@head.register
def _(op: operators.Taylor, q, k, v):
    d = q.shape[-1]
    scale = d**-0.5 if op.scale is None else op.scale

    def phi(x):
        x = scale**0.5 * x
        columns = [torch.ones_like(x[:, 0]), *x.unbind(-1)]
        columns += [x[:, i] * x[:, j] for i in range(d) for j in range(i)]
        return torch.stack([*columns, *(x**2 / 2**0.5).unbind(-1)], -1)

    return linear_attention(phi(q), phi(k), v, op.causal)


@head.register
def _(op: operators.SketchedTaylor, q, k, v):
    d, p, m = q.shape[-1], op.degree, op.features
    scale = d**-0.5 if op.scale is None else op.scale
    w = op.signs(d).to(q.dtype).reshape(p * m, d)

    def phi(x):
        x = scale**0.5 * x
        turned = (x @ w.mT).reshape(len(x), p, m)
        powers = [turned[:, :r].prod(1) / (m * math.factorial(r)) ** 0.5 for r in range(2, p + 1)]
        return torch.cat((torch.ones_like(x[:, :1]), x, *powers), -1)

    out, degree = gathered(phi(q), phi(k), v, op.causal)
    return torch.where(degree > 0, out / torch.where(degree > 0, degree, 1), 0)


@head.register
def _(op: operators.LinearAttention, q, k, v):
    def phi(x):
        return torch.where(x > 0, 1 + x, torch.exp(x))

    return linear_attention(phi(q), phi(k), v, op.causal)


@head.register
def _(op: operators.CosFormer, q, k, v):
    longest = max(len(q), len(k))

    def phi(x):
        angle = math.pi * torch.arange(len(x), dtype=x.dtype)[:, None] / (2 * longest)
        return torch.cat((x.relu() * angle.cos(), x.relu() * angle.sin()), -1)

    out, degree = gathered(phi(q), phi(k), v, op.causal)
    return torch.where(degree > 0, out / torch.where(degree > 0, degree, 1), 0)


@head.register
def _(op: operators.HyperAttention, q, k, v):
    n, l, planes = len(q), len(k), op.hyperplanes(q.shape[-1])
    of_q, of_k = (gray_order(x, planes) for x in (q, k))
    blocks = math.ceil(l / op.block)
    out = [None] * n
    for b in range(blocks):
        rows = [of_q[r] for r in range(n) if r * blocks // n == b]
        places = [r for r in range(l) if r * blocks // l == b]
        outside = l - len(places)
        drawn = [(places[-1] + 1 + o) % l for o in op.offsets(outside).tolist()]
        keys = [of_k[r] for r in places + drawn]
        weight = [1.0] * len(places) + [outside / max(1, len(drawn))] * len(drawn)
        logs = torch.tensor(weight, dtype=torch.float64).log().to(q.dtype)
        P = torch.softmax(q[rows] @ k[keys].mT / q.shape[-1] ** 0.5 + logs, -1)
        for i, average in zip(rows, P @ v[keys], strict=True):
            out[i] = average
    return torch.stack(out)


@head.register
def _(op: operators.KDEFormer, q, k, v):
    n, l, planes = len(q), len(k), op.hyperplanes(q.shape[-1])
    of_q, of_k = (gray_order(x, planes) for x in (q, k))
    blocks = math.ceil(l / op.block)
    lengths = v.double().square().sum(-1).sqrt()
    p = (lengths / lengths.sum() + 1 / l) / 2
    uniform = Stream(op.seed, "KDEFormer, keys").uniform(op.samples)
    drawn = [int((p.detach().cumsum(0) <= u).sum()) for u in uniform.tolist()]
    out = [None] * n
    for b in range(blocks):
        rows = [of_q[r] for r in range(n) if r * blocks // n == b]
        own = [of_k[r] for r in range(l) if r * blocks // l == b]
        keys, inside = own + drawn, torch.tensor([j in own for j in drawn], dtype=torch.bool)
        weight = torch.where(inside, 0, 1 / (op.samples * p[drawn]))
        logs = torch.cat((torch.zeros(len(own)), weight.log())).to(q.dtype)
        P = torch.softmax(q[rows] @ k[keys].mT / q.shape[-1] ** 0.5 + logs, -1)
        for i, average in zip(rows, P @ v[keys], strict=True):
            out[i] = average
    return torch.stack(out)


def gray_order(x, planes):
    """Tokens by the place of their signs in the reflected code, where neighbours differ in one."""
    code = ["0", "1"]
    for _ in range(planes.shape[-1] - 1):
        code = ["0" + c for c in code] + ["1" + c for c in reversed(code)]
    signs = ["".join("1" if s > 0 else "0" for s in row) for row in x.double() @ planes]
    return sorted(range(len(x)), key=lambda i: code.index(signs[i]))


@head.register
def _(op: operators.Quantized, q, k, v):
    # Digits, least exponent of a normal number in [1/2, 1), largest number.
    formats = {"bfloat16": (8, -125, 2.0**128 - 2.0**120), "float16": (11, -13, 65504.0)}
    formats |= {"float8": (4, -5, 448.0), "float8_e5m2": (3, -13, 57344.0)}
    whole = {"int8": 127.0, "int": 2.0 ** ((op.bits or 8) - 1) - 1}.get(op.precision)
    top = whole or (formats[op.precision][-1] if op.precision.startswith("float8") else None)
    turbo = op.precision.startswith("turbo")

    def nearest(x):
        if whole:
            return float(round(x))
        digits, least, most = formats[op.precision]
        step = 2.0 ** (max(math.frexp(x)[1], least) - digits)
        return max(-most, min(most, round(x / step) * step))

    def each(x):
        return torch.tensor([[nearest(t) for t in row] for row in x.tolist()], dtype=x.dtype)

    def Q(x):
        if top is None:
            return each(x)
        dims = {"token": (-1,), "channel": (-2,), "tensor": (-2, -1)}[op.granularity]
        high = x.abs().amax(dims, keepdim=True)
        return each(top * x / high.clamp_min(torch.finfo(x.dtype).tiny)) * high / top

    def haar(purpose, d):
        Z, R = torch.linalg.qr(Stream(op.seed, purpose).normal(d, d))
        return Z * R.diagonal().sign()

    def centred(x, bits):
        c = operators.quantized.lloyd_max(bits).tolist()
        T, d, length = haar("Quantized, rotation", x.shape[-1]), x.shape[-1], norms(x)
        turned = ((x / length.clamp_min(1e-300)).detach() @ T.mT * d**0.5).tolist()
        near = [[min(c, key=lambda y, t=t: abs(y - t)) for t in row] for row in turned]
        return length * (torch.tensor(near, dtype=F64) / d**0.5 @ T)

    def norms(x):
        return x.square().sum(-1, keepdim=True).sqrt()

    def rounded(part, x):
        if part not in op.parts:
            return x
        d, wide = x.shape[-1], x.double()
        if op.precision == "turboquant":
            return centred(wide, op.bits).to(x.dtype)
        if turbo:
            near = centred(wide, op.bits - 1) if op.bits > 1 else 0 * wide
            r = wide - near
            if op.sketch == "gaussian":
                S, c = Stream(op.seed, "Quantized, sketch").normal(d, d), (math.pi / 2) ** 0.5 / d
            else:
                S = haar("Quantized, sketch", d)
                c = math.pi**0.5 * math.gamma((d + 1) / 2) / math.gamma(d / 2) / d
            signs = 2 * (r @ S.mT >= 0).double() - 1
            return (near + c * norms(r) * (signs @ S)).to(x.dtype)
        if op.rotation:
            T = haar("Quantized, rotation", d)
            return (Q(wide @ T.mT) @ T).to(x.dtype)
        return Q(x)

    k = k - k.mean(0) if op.smoothing else k
    q, k, v = (rounded(part, x) for part, x in (("q", q), ("k", k), ("v", v)))
    if "p" not in op.parts:
        return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
    s = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    P = torch.exp(s - s.amax(-1, keepdim=True))
    scale = top or 1.0
    return (each(scale * P.detach()) / scale / P.sum(-1, keepdim=True)).to(v.dtype) @ v


def linear_attention(phi_q, phi_k, v, causal=False):
    """phi(q) (phi(k)^T v), each row divided by phi(q) (phi(k)^T 1)."""
    out, degree = gathered(phi_q, phi_k, v, causal)
    return out / degree


def gathered(phi_q, phi_k, v, causal):
    """phi(q) (phi(k)^T v) and phi(q) (phi(k)^T 1); causal, token by token, as a recurrence."""
    if not causal:
        return phi_q @ (phi_k.mT @ v), (phi_q * phi_k.sum(0)).sum(-1, keepdim=True)
    state, mass, out, degree = 0, 0, [], []
    for x, y, of_token in zip(phi_q.split(1), phi_k.split(1), v.split(1), strict=True):
        state, mass = state + y.mT @ of_token, mass + y
        out.append(x @ state)
        degree.append((x * mass).sum(-1, keepdim=True))
    return torch.cat(out), torch.cat(degree)


@head.register
def _(op: operators.Local, q, k, v):
    n, l, step = len(q), len(k), op.dilation
    out = []
    for i in range(n):
        p = (2 * i + 1) * l // (2 * n)
        band = range(p - op.window * step, p + op.window * step + 1, step)
        kept = {j for j in band if 0 <= j < l} | {*range(min(op.sinks, l))}
        out.append(attend(q, k, v, i, {j for j in kept if j <= p or not op.causal}))
    return torch.cat(out)


@head.register
def _(op: operators.BandLowRank, q, k, v):
    def elu(x):
        return torch.where(x > 0, 1 + x, torch.exp(x))

    maps = elu, lambda x: elu(-x), lambda x: 2 / (1 + torch.exp(-2 * x))
    some = maps[: op.kernels]
    far = sum(linear_attention(phi(q), phi(k), v, op.causal) for phi in some) / op.kernels
    n, l, near = len(q), len(k), []
    for i in range(n):
        p = (2 * i + 1) * l // (2 * n)
        band = {j for j in range(l) if abs(p - j) <= op.window}
        near.append(attend(q, k, v, i, {j for j in band if j <= p or not op.causal}))
    return op.blend * torch.cat(near) + (1 - op.blend) * far


@head.register
def _(op: operators.Scatterbrain, q, k, v):
    n, l, d = len(q), len(k), q.shape[-1]
    scale = d**-0.5 if op.scale is None else op.scale
    both = op.estimator == "hyperbolic"
    w = op.weights(op.features // 2 if both else op.features, d).to(q.dtype)

    def phi(x):
        x = scale**0.5 * x
        logs = x @ w.mT
        logs = torch.cat((logs, -logs), -1) if both else logs
        return torch.exp(logs - (x * x).sum(-1, keepdim=True) / 2) / op.features**0.5

    phi_q, phi_k = phi(q), phi(k)
    outer = [phi_k[j : j + 1].mT @ v[j : j + 1] for j in range(l)]
    nothing, out = torch.zeros_like(outer[0]), []
    for i in range(n):
        p = (2 * i + 1) * l // (2 * n)
        seen = range(p + 1 if op.causal else l)
        S = [j for j in seen if abs(p - j) <= op.window or j < op.sinks]
        rest = [j for j in seen if j not in S]
        exact = torch.exp(scale * (q[i : i + 1] @ k[S].mT))
        far = phi_q[i : i + 1] @ sum((outer[j] for j in rest), nothing)
        mass = exact.sum() + (phi_q[i] * phi_k[rest].sum(0)).sum()
        out.append((exact @ v[S] + far) / mass)
    return torch.cat(out)


@head.register
def _(op: operators.BigBird, q, k, v):
    n, l = len(q), len(k)
    shares, out = op.shares(math.ceil(n / op.block)).tolist(), []
    for i in range(n):
        p = (2 * i + 1) * l // (2 * n)
        drawn = {int(share * l) for share in shares[i // op.block]}
        near = {j for j in range(p - op.window, p + op.window + 1) if 0 <= j < l}
        kept = {*range(l)} if p < op.globals else near | drawn | {*range(min(op.globals, l))}
        out.append(attend(q, k, v, i, kept))
    return torch.cat(out)


@head.register
def _(op: operators.Clustered, q, k, v):
    x, d, top = q.detach().double(), q.shape[-1], min(op.top, len(k))
    centres = x[landmarks.UniformRandom(op.seed).indices(x, min(op.clusters, len(x)))]
    for _ in range(op.iterations):
        far = x.square().sum(-1)[:, None] + centres.square().sum(-1) - 2 * (x @ centres.mT)
        owner = far.argmin(-1).tolist()
        of = [[i for i, o in enumerate(owner) if o == c] for c in range(len(centres))]
        centres = torch.stack([x[of[c]].mean(0) if of[c] else z for c, z in enumerate(centres)])
    means = torch.stack([q[of[c]].mean(0) if of[c] else 0 * q[0] for c in range(len(centres))])
    A = torch.softmax(means @ k.mT / d**0.5, -1)
    if not top:
        return (A @ v)[owner]
    T = A.detach().argsort(-1, descending=True)[:, :top]
    rest = A.scatter(-1, T, 0) @ v
    out = []
    for i, c in enumerate(owner):
        out.append(A[c, T[c]].sum() * attend(q, k, v, i, T[c].tolist()) + rest[c])
    return torch.cat(out)


@head.register
def _(op: operators.MRA, q, k, v):
    b, root = op.block, q.shape[-1] ** 0.5
    of_q, of_k = ([range(len(x))[i : i + b] for i in range(0, len(x), b)] for x in (q, k))
    means = [torch.stack([x[list(y)].mean(0) for y in of]) for x, of in ((q, of_q), (k, of_k))]
    mean_v = torch.stack([v[list(y)].mean(0) for y in of_k])
    sizes = torch.tensor([len(y) for y in of_k], dtype=torch.float64).to(q.dtype)
    T = means[0] @ means[1].mT / root
    width = min(op.refined * b, len(k))  # a short block is filled up
    out = []
    for x, row in zip(of_q, T, strict=True):
        chosen = sorted(range(len(of_k)), key=row.tolist().__getitem__, reverse=True)[: op.refined]
        keys = [j for y in chosen for j in of_k[y]]
        keep = torch.arange(width) < len(keys)
        keys += [0] * (width - len(keys))
        S = torch.where(keep, q[list(x)] @ k[keys].mT / root, -math.inf)
        fine = torch.softmax(S, -1) @ v[keys]
        if op.sparse:
            out.append(fine)
            continue
        left = torch.ones(len(of_k), dtype=torch.bool)
        left[chosen] = False
        top = row[left].max().detach() if left.any() else 0
        w = (torch.exp(row.where(left, -math.inf) - top) * sizes)[None]
        coarse = w @ mean_v
        if left.any():
            share = torch.sigmoid(S.logsumexp(-1, keepdim=True) - top - w.sum().log())
            fine = share * fine + (1 - share) * coarse / w.sum()
        out.append(fine)
    return torch.cat(out)


@head.register
def _(op: operators.Reformer, q, k, v):
    n, l, parts = len(q), len(k), math.ceil(len(k) / op.chunk)

    def hashed(x, R):
        turned = (x.double() @ R).tolist()
        both = [row + [-y for y in row] for row in turned]
        return [max(range(len(row)), key=row.__getitem__) if row else 0 for row in both]

    met = [[] for _ in range(n)]  # pairs: a key, and whether it counts
    for R in op.rotations(q.shape[-1]):
        of_q, of_k = hashed(q, R), hashed(k, R)
        in_order = [sorted(range(len(of)), key=of.__getitem__) for of in (of_q, of_k)]
        for rank, i in enumerate(in_order[0]):
            part = rank * parts // n
            near = [j for r, j in enumerate(in_order[1]) if r * parts // l in (part - 1, part)]
            alike = {j for j in near if of_k[j] == of_q[i]} or {*near}
            met[i] += [(j, j in alike) for j in near]
    out = []
    for i in range(n):
        N = [met[i].count((j, True)) for j in range(l)]  # in how many rounds
        keys = [j for j, _ in met[i]]
        logs = [-math.log(N[j]) if counts else -math.inf for j, counts in met[i]]
        scores = q[i : i + 1] @ k[keys].mT / q.shape[-1] ** 0.5
        out.append(torch.softmax(scores + torch.tensor(logs, dtype=q.dtype), -1) @ v[keys])
    return torch.cat(out)


@head.register
def _(op: operators.Thinformer, q, k, v):
    kept, uniforms = op.draws(len(k))
    at, r = kept.tolist(), len(uniforms)
    m = len(at) >> r
    x, y = k.detach().double() / q.shape[-1] ** 0.25, v.detach().double()
    y, top = y / (float(y.abs().max()) or 1), x.square().sum(-1).max()
    for i, drawn in enumerate(uniforms, 1):
        h = max(2, math.ceil(m / 2 ** (r - i)))
        pairs = list(zip(at[::2], at[1::2], drawn.tolist(), strict=True))
        at = []
        for bucket in (pairs[j : j + h] for j in range(0, len(pairs), h)):
            of = [j for one, other, _ in bucket for j in (one, other)]
            K = torch.exp(x[of] @ x[of].mT - top) * (y[of] @ y[of].mT + 1)
            D = K[::2] - K[1::2]
            D = (D[:, ::2] - D[:, 1::2]).tolist()
            signs, longest = [], 0.0
            for p, (one, other, u) in enumerate(bucket):
                length = math.sqrt(max(D[p][p], 0))
                longest = max(longest, length)
                a = op.caution * (0.5 + math.log(16 * r * m * m / (2 * h))) * length * longest
                tilt = sum(s * D[j][p] for j, s in enumerate(signs)) / a if a > 0 else 0
                signs.append(-1 if u <= tilt else 1)
                at.append(other if u <= tilt else one)
    return torch.softmax(q @ k[at].mT / q.shape[-1] ** 0.5, -1) @ v[at]


def attend(q, k, v, i, kept):
    """Row i of softmax attention over the kept keys alone, (1, e)."""
    at = sorted(kept)
    return torch.softmax(q[i : i + 1] @ k[at].mT / q.shape[-1] ** 0.5, -1) @ v[at]


@head.register
def _(op: operators.Skyformer, q, k, v):
    s = q.shape[-1] ** 0.25 if op.bandwidth is None else op.bandwidth
    z = points(op.landmarks, torch.cat((q, k)), op.rank)
    M = gaussian(z, z, s) + op.gamma * torch.eye(len(z), dtype=z.dtype)
    D = M.sum(-1, keepdim=True) ** -0.5
    inner = D * (gaussian(z, k, s) @ v)
    return gaussian(q, z, s) @ (D * inverted(op.pinv, D * M * D.mT)(inner))


@head.register
def _(op: operators.RPCholesky, q, k, v):
    scale = q.shape[-1] ** -0.5
    k = k - k.mean(0)
    exponent = scale / op.temperature**2
    most = exponent * (k * k).sum(-1).max().detach()  # a common factor exp(-most) of h cancels
    whole = torch.exp(exponent * (k * k).sum(-1) - most)  # the diagonal of h(k, k)
    left = whole.detach().clone()
    S, rows, factor = [], [], torch.zeros(0, len(k), dtype=k.dtype)
    for u in uniforms(op.seed, "RPCholesky", op.rank):
        spent = left <= 4 * op.rank * torch.finfo(k.dtype).eps * whole.detach()
        p = torch.where(spent, 0, left).cumsum(0)
        if p[-1] == 0:
            break
        s = int((p <= u * p[-1]).sum())
        rows.append(torch.exp(exponent * (k[s : s + 1] @ k.mT) - most))
        g = rows[-1].detach() - factor[:, s : s + 1].mT @ factor
        factor = torch.cat((factor, g / left[s].sqrt()))
        left = (whole.detach() - factor.square().sum(0)).clamp_min(0)
        left[s] = 0
        S.append(s)
    h = torch.cat(rows)
    D = whole[S][:, None] ** -0.5
    ones = torch.ones_like(v[:, :1])
    weighted = D * inverted(op.pinv, D * h[:, S] * D.mT)(D * (h @ torch.cat((v, ones), -1)))
    both = torch.softmax(scale * (q @ k[S].mT), -1) @ weighted
    return torch.where(both[:, -1:] > 0, both[:, :-1] / both[:, -1:], 0)


def gaussian(x, y, s):
    """exp(-|x_i - y_j|^2 / (2 s^2)), the distances by |x|^2 + |y|^2 - 2 <x, y>."""
    squares = x.square().sum(-1)[:, None] + y.square().sum(-1)[None, :]
    return torch.exp((2 * (x @ y.mT) - squares) / (2 * s**2))


def power(degree):
    """degree^(-1/2), 0 where the approximate degree is not positive."""
    return torch.where(degree > 0, degree.clamp_min(1e-300) ** -0.5, 0)


@singledispatch
def points(selector, x, m):
    """m landmarks of tokens x (s, d)."""
    return brought(points, selector)(selector, x, m)


@points.register
def _(selector: landmarks.SegmentMeans, x, m):
    owner = torch.arange(len(x)) * m // len(x)
    return torch.stack([x[owner == j].mean(0) for j in range(m)])


@points.register
def _(selector: landmarks.Strided, x, m):
    return torch.stack([x[j * len(x) // m] for j in range(m)])


@points.register
def _(selector: landmarks.UniformRandom, x, m):
    return x[selector.indices(x, m)]


@points.register
def _(selector: landmarks.FarthestPoint, x, m):
    return x[far_from_each_other(x.detach(), m, lambda weight: int(weight.argmax()))]


@points.register
def _(selector: landmarks.KMeans, x, m):
    u = iter(uniforms(selector.seed, "landmarks.KMeans", m))
    centred = (x - x.mean(0)).detach().double()
    at = far_from_each_other(centred, m, lambda weight: by_share(weight, next(u)), central=False)
    centre = centred[at]
    for _ in range(selector.iterations):
        distance = centre.square().sum(-1) - 2 * (centred @ centre.mT)
        owner = distance.argmin(-1)
        mine = [owner == j for j in range(m)]
        centre = torch.stack(
            [centred[mine[j]].mean(0) if mine[j].any() else centred[at[j]] for j in range(m)]
        )
    return torch.stack([x[mine[j]].mean(0) if mine[j].any() else x[at[j]] for j in range(m)])


@points.register
def _(selector: landmarks.RPCholeskyPivots, x, m):
    u = uniforms(selector.seed, "landmarks.RPCholeskyPivots", m)
    return x[pivots(x, selector, m, selector.block, lambda left, i: by_share(left, u[i]))]


@points.register
def _(selector: landmarks.GreedyResidual, x, m):
    first = int((x - x.mean(0)).square().sum(-1).argmin())
    return x[pivots(x, selector, m, 1, lambda left, i: int(left.argmax()) if i else first)]


@points.register
def _(selector: landmarks.LeverageScores, x, m):
    points, s = x.detach().double(), len(x)
    drawn = Stream(selector.seed, "landmarks.LeverageScores, sample").permutation(s)
    sample = points[drawn[: selector.sample * m].sort().values]
    width = selector.bandwidth or x.shape[-1] ** 0.25
    K, c = gaussian(sample, points, width), selector.ridge * s / m
    shift = c * len(sample) / s * torch.eye(len(sample), dtype=F64)
    shifted = gaussian(sample, sample, width) + shift
    score = (1 - (K * torch.linalg.solve(shifted, K)).sum(0)) / c
    chosen = []
    for u in uniforms(selector.seed, "landmarks.LeverageScores, landmarks", m):
        chosen.append(by_share(score.index_fill(0, torch.tensor(chosen).long(), 0), u))
    return x[sorted(chosen)]


@points.register
def _(selector: landmarks.GridPool, x, m):
    return torch.stack([x[tokens].mean(0) for tokens, *_ in cells(selector, len(x), m)])


@points.register
def _(selector: landmarks.GridConv, x, m):
    found, d = cells(selector, len(x), m), x.shape[-1]
    high = max(len(set(row)) for _, row, _ in found)
    wide = max(len(set(column)) for *_, column in found)
    weight = 2 * Stream(selector.seed, "landmarks.GridConv").uniform(d, d, high, wide) - 1
    weight = (weight / (d * high * wide) ** 0.5).to(x)
    windows = x.new_zeros(m, high, wide, d)
    for j, (tokens, row, column) in enumerate(found):
        for token, a, b in zip(tokens, row, column, strict=True):
            windows[j, a, b] = x[token]
    z = windows.reshape(m, -1) @ weight.permute(2, 3, 1, 0).reshape(-1, d)
    centred = z - z.mean(-1, keepdim=True)
    z = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return z * (1 + torch.erf(z / 2**0.5)) / 2


def uniforms(seed, purpose, m):
    return Stream(seed, purpose).uniform(m).tolist()


def by_share(weight, u):
    """The first token at which the running sum of the weights exceeds the share u of it."""
    total = 0.0
    for i, w in enumerate(weight.tolist()):
        total += w
        if total > u * float(weight.sum()):
            return i
    return int(weight.nonzero()[-1])


def far_from_each_other(x, m, choose, *, central=True):
    """Tokens chosen one after the other by the squared distance to the nearest before."""
    x = x.double()
    first = int((x - x.mean(0)).square().sum(-1).argmin()) if central else None
    chosen = [first if central else choose(x.new_ones(len(x)))]
    away = x.new_full((len(x),), math.inf)
    for _ in range(m - 1):
        near = x[chosen[-1]]
        distance = x.square().sum(-1) + near.square().sum() - 2 * (x @ near[:, None])[:, 0]
        away = torch.minimum(away, distance.clamp_min(0))
        away[chosen] = 0
        chosen.append(choose(away))
    return sorted(chosen)


def pivots(x, selector, m, block, choose):
    """Tokens chosen by the diagonal of the Schur complement of those before, a block at a time."""
    x = x.detach().double()
    width = selector.bandwidth or x.shape[-1] ** 0.25
    left, chosen, factor = x.new_ones(len(x)), [], x.new_zeros(0, len(x))
    for start in range(0, m, block):
        weight = left.clone()
        new = range(start, min(start + block, m))
        for i in new:
            chosen.append(choose(weight, i))
            weight[chosen[-1]] = 0
        rows = gaussian(x[chosen[start:]], x, width)
        for i in new:
            s = chosen[i]
            g = rows[i - start] - (factor[:, s : s + 1].mT @ factor)[0]
            factor = torch.cat((factor, (g / g[s].sqrt())[None]))
            left = (left - factor[-1] ** 2).clamp_min(0)
            left[chosen[: i + 1]] = 0
    return sorted(chosen)


def cells(selector, s, m):
    """The tokens of each cell of the grid, their rows and their columns in the cell."""
    high = selector.height or (s // selector.width if selector.width else 0)
    high = high or max(a for a in range(1, s + 1) if s % a == 0 and a * a <= s)
    wide = s // high

    def rank(r):
        oblong = (high / r) / (wide / (m / r))
        oblong = max(oblong, 1 / oblong)
        return oblong > 2 * (1 + 1e-9), m % r != 0, oblong

    r = min((r for r in range(1, min(high, m) + 1) if m <= r * wide), key=rank)
    found = []
    for i in range(r):
        count = (i + 1) * m // r - i * m // r
        rows = [a for a in range(high) if a * r // high == i]
        for j in range(count):
            columns = [b for b in range(wide) if b * count // wide == j]
            place = list(product(rows, columns))
            tokens = [a * wide + b for a, b in place]
            found.append(
                (tokens, [a - rows[0] for a, _ in place], [b - columns[0] for _, b in place])
            )
    return found


def inverted(solver, a):
    """The map b -> A^+ b: a product with the inverse, or conjugate gradients on the columns."""
    if isinstance(solver, pinv.Ridge):
        return inverted(solver.solver, a + solver.ridge * torch.eye(len(a), dtype=a.dtype))
    if isinstance(solver, pinv.ConjugateGradients):
        return lambda b: conjugate_gradients(a, b, solver.steps)
    y = inverse(solver, a)
    return lambda b: y @ b


def conjugate_gradients(a, b, steps):
    """Hestenes and Stiefel, on every column; one that is solved to rounding rests."""
    x, r, p = torch.zeros_like(b), b, b
    least = (torch.finfo(b.dtype).eps * b.norm(dim=0)) ** 2
    for _ in range(steps):
        ap = a @ p
        rr = (r * r).sum(0)
        going = rr > least
        # Divided by 1 where it rests: the gradient of 0 / 0 would be NaN even if not taken.
        alpha = torch.where(going, rr, 0) / torch.where(going, (p * ap).sum(0), 1)
        x, r = x + alpha * p, r - alpha * ap
        p = r + torch.where(going, (r * r).sum(0), 0) / torch.where(going, rr, 1) * p
    return x


@singledispatch
def inverse(solver, a):
    """The (pseudo-)inverse of one matrix (m, m)."""
    return brought(inverse, solver)(solver, a)


@inverse.register
def _(solver: pinv.SVD, a):
    U, s, Vh = torch.linalg.svd(a)
    big = s > len(a) * torch.finfo(a.dtype).eps * s[0]
    return (Vh.mT * torch.where(big, 1 / s, 0)) @ U.mT


@inverse.register
def _(solver: pinv.Cholesky, a):
    shift = 4 * torch.finfo(a.dtype).eps * a.trace().detach()
    return torch.linalg.inv(a + shift * torch.eye(len(a), dtype=a.dtype))


@inverse.register
def _(solver: pinv.Ridge, a):
    return inverse(solver.solver, a + solver.ridge * torch.eye(len(a), dtype=a.dtype))


@inverse.register
def _(solver: pinv.NewtonRaphson, a):
    x = start(solver, a)
    for _ in range(solver.steps):
        x = 2 * x - x @ a @ x
    return x


@inverse.register
def _(solver: pinv.NystromformerCubic, a):
    eye, x = torch.eye(len(a), dtype=a.dtype), start(solver, a)
    for _ in range(solver.steps):
        ax = a @ x
        x = 0.25 * x @ (13 * eye - ax @ (15 * eye - ax @ (7 * eye - ax)))
    return x


@inverse.register
def _(solver: pinv.Hyperpower, a):
    eye, x = torch.eye(len(a), dtype=a.dtype), start(solver, a)
    for _ in range(solver.steps):
        r = eye - a @ x
        x = x @ sum(torch.linalg.matrix_power(r, i) for i in range(solver.order))
    return x


@inverse.register
def _(solver: pinv.Chebyshev, a):
    low, high = (float(x) for x in solver.interval(a))  # the estimate is given, like a drawn index
    eye = torch.eye(len(a), dtype=a.dtype)
    if solver.definite:
        x, t = 2 * eye / (high + low), (high - low) / (high + low)
    else:
        x = 2 * a.mT / (high**2 + low**2)
        t = (high**2 - low**2) / (high**2 + low**2)
    return semi_iterations(a, x, t, solver.degree, solver.steps)


@inverse.register
def _(solver: pinv.Minimax, a):
    kappa = (1.15 * solver.condition) ** (1 if solver.scaling.definite else 2)
    x = solver.scaling(a) * 2 / (1 + 1 / kappa)
    return semi_iterations(a, x, (kappa - 1) / (kappa + 1), solver.degree, solver.steps)


def semi_iterations(a, x, t, degree, steps):
    """Each step: ``degree`` Chebyshev semi-iterations for A Z = I from Z = 0, preconditioned by X.

    Golub and Varga 1961: z' = w (z + x (1 - a z) - z_before) + z_before with w = 1, then
    2 / (2 - t^2), then 1 / (1 - t^2 w / 4), for spectra of I - X A in [-t, t].
    """
    eye = torch.eye(len(a), dtype=a.dtype)
    for _ in range(steps):
        before, z, w = torch.zeros_like(x), x, 1.0
        for j in range(1, degree):
            w = 2 / (2 - t * t) if j == 1 else 1 / (1 - t * t * w / 4)
            before, z = z, w * (z + x @ (eye - a @ z) - before) + before
        x = z
        t = 1 / math.cosh(degree * math.acosh(1 / t)) if t > 1e-30 else 0.0
    return x


@inverse.register
def _(solver: pinv.SketchedFit, a):
    eye, x = torch.eye(len(a), dtype=a.dtype), start(solver, a)
    w = Stream(solver.seed, "pinv.SketchedFit").normal(len(a), solver.columns).to(a.dtype)
    for _ in range(solver.steps):
        r = eye - a @ x
        far, near = (r @ r @ w).flatten(), (r @ r @ r @ w).flatten()
        # Least squares: the c that makes R^2 w + c (R^3 - R^2) w shortest.
        c = torch.linalg.lstsq((far - near)[:, None], far[:, None]).solution
        c = float(c.clamp(1, 4)) if float((far - near).norm()) > 1e-12 * float(far.norm()) else 1.0
        x = x @ (eye + r + c * r @ r)
    return x


@inverse.register
def _(solver: pinv.ConjugateGradients, a):
    return conjugate_gradients(a, torch.eye(len(a), dtype=a.dtype), solver.steps)


@inverse.register
def _(solver: pinv.Purified, a):
    x = inverse(solver.solver, a)
    return x @ a @ x


@inverse.register
def _(solver: pinv.Checkpointed, a):
    return inverse(solver.solver, a)


@inverse.register(pinv.ImplicitGradient)
@inverse.register(pinv.GolubPereyra)
def _(solver, a):
    with torch.no_grad():
        y = inverse(solver.solver, a)
    # The value is y, and the differential is -y da y.
    return y - y @ (a - a.detach()) @ y if a.requires_grad else y


def start(solver, a):
    """The initial guess of an iteration."""
    return scaled(solver.scaling, a)


@singledispatch
def scaled(scaling, a):
    """X0 of one matrix (m, m)."""
    raise NotImplementedError(type(scaling))


@scaled.register
def _(scaling: pinv.NormProduct, a):
    one, infinity = a.abs().sum(0).max(), a.abs().sum(1).max()
    return scaling.factor * a.mT / (one * infinity)


@scaled.register
def _(scaling: pinv.OneNorm, a):
    return scaling.factor * a.mT / a.abs().sum(0).max() ** 2


@scaled.register
def _(scaling: pinv.Frobenius, a):
    return scaling.factor * a.mT / a.square().sum()


@scaled.register
def _(scaling: pinv.Optimal, a):
    s = torch.linalg.svdvals(a)
    s = s[s > len(a) * torch.finfo(a.dtype).eps * s[0]]
    return 2 * a.mT / (s[0] ** 2 + s[-1] ** 2)


@scaled.register
def _(scaling: pinv.PowerEstimate, a):
    v = Stream(scaling.seed, "pinv.PowerEstimate").normal(len(a)).to(a.dtype)
    for _ in range(scaling.sweeps - 1):
        v = a.mT @ (a @ v)
    return a.mT * (v @ v) / ((a @ v) @ (a @ v)) / scaling.safety


@scaled.register
def _(scaling: pinv.KrylovEstimate, a):
    """The largest Ritz value of A^T A on span{v, A^T A v, ...}, by an orthonormal basis of it."""
    v = a.mT @ Stream(scaling.seed, "pinv.singular_interval").normal(len(a)).to(a.dtype)
    basis = v[:, None] / v.norm()
    for _ in range(min(scaling.sweeps, len(a)) - 1):
        w = a.mT @ (a @ basis[:, -1])
        w = w - basis @ (basis.mT @ w)
        w = w - basis @ (basis.mT @ w)
        basis = torch.cat((basis, w[:, None] / w.norm()), 1)
    ritz = torch.linalg.svdvals(a @ basis)[0]
    bound = (a.abs().sum(0).max() * a.abs().sum(1).max()).sqrt()
    return a.mT / torch.minimum(scaling.safety * ritz, bound) ** 2


@scaled.register
def _(scaling: pinv.InfinityNorm, a):
    return scaling.factor * torch.eye(len(a), dtype=a.dtype) / a.abs().sum(1).max()


@scaled.register
def _(scaling: pinv.Trace, a):
    return scaling.factor * torch.eye(len(a), dtype=a.dtype) / a.trace()


@scaled.register
def _(scaling: pinv.OptimalDefinite, a):
    s = torch.linalg.eigvalsh(a)
    return 2 * torch.eye(len(a), dtype=a.dtype) / (s[0] + s[-1])


@scaled.register
def _(scaling: pinv.PublishedNystromformer, a):
    return a.mT / (a.abs().sum(0).max() * a.abs().sum(1).max())


@scaled.register
def _(scaling: pinv.PublishedSoft, a):
    return 0.9 * 2 * a.mT / (a.abs().sum(0).max() - scaling.ridge) ** 2


@scaled.register
def _(scaling: pinv.PublishedSoftNorm, a):
    alpha, eye = 2 / a.sum(1).max() ** 2, torch.eye(len(a), dtype=a.dtype)
    halvings = 0
    while (eye - alpha * a @ a).abs().sum(0).max() > 1.01 and halvings < 10:
        alpha, halvings = alpha / 2, halvings + 1
    return alpha * a


class Exponentials(TorchDispatchMode):
    """Counts the exponentials evaluated inside the context."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.exp, torch.ops.aten._softmax):
            self.total += out.numel()
        return out
