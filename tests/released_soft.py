"""The computation of the released SOFT, written plainly from its formulas, on its own weights.

``classify(state, image, ...)`` reads a state dict under the repository's names. Sources: arXiv
2110.11945, Eq. 4-10; the departures of the code from it, as the repository has them: landmarks by
convolution, LayerNorm and GELU; a filter on v; softmax in the fourth stage; 0.01 on the core after
alpha; a gradient by formula. ``norm`` is that of its Norm models.
"""

import math

import torch
from torch.nn import functional

STEPS = 20


def classify(state, image, heads, windows, *, norm=False):
    """Logits (b, classes) of images (b, c, H, W), in evaluation mode."""
    x = image
    for i in range(1, 5):
        x, grid = embedded(state, x, i)
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith(f"block{i}."))
        for j in range(depth):
            w = weights_under(state, f"block{i}.{j}.")
            if i < 4:
                x = softmax_free_block(w, x, grid, heads[i - 1], windows[i - 1], norm)
            else:
                x = softmax_block(w, x, heads[3])
        if i < 4:
            x = x.transpose(1, 2).reshape(len(x), -1, *grid)
    x = layer_norm(x, state, "norm", 1e-6)[:, 0]
    return linear(x, state, "head")


def embedded(state, x, i):
    """Convolutions, batch norms by their running statistics, ReLU; the class token; positions."""
    w = weights_under(state, f"patch_embed{i}.proj.")
    strides = (2, 1, 2) if i == 1 else (2,)
    for layer, stride in enumerate(strides):
        conv, norm = f"{3 * layer}", f"{3 * layer + 1}"
        x = functional.conv2d(x, w[conv + ".weight"], w[conv + ".bias"], stride, padding=1)
        mean, var = (w[f"{norm}.running_{s}"][:, None, None] for s in ("mean", "var"))
        gain, shift = (w[f"{norm}.{s}"][:, None, None] for s in ("weight", "bias"))
        x = ((x - mean) / (var + 1e-5).sqrt() * gain + shift).clamp(min=0)
    grid = tuple(x.shape[-2:])
    x = x.flatten(2).transpose(1, 2)
    table = state[f"pos_embed{i}"]
    first = table[:, : 1 if i == 4 else 0]
    side = math.isqrt(table.shape[1])
    spread = table[:, first.shape[1] :].transpose(1, 2).reshape(1, -1, side, side)
    spread = functional.interpolate(spread, grid, mode="bilinear", align_corners=False)
    if i == 4:
        x = torch.cat((state["cls_token"].expand(len(x), 1, -1), x), 1)
    return x + torch.cat((first, spread.flatten(2).transpose(1, 2)), 1), grid


def softmax_free_block(w, x, grid, heads, window, norm):
    x = layer_norm(x + softmax_free_attention(w, x, grid, heads, window, norm), w, "att.norm1")
    y = linear(x, w, "att.ff1")
    y = y / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return layer_norm(x + linear(y, w, "att.ff2"), w, "att.norm2")


def softmax_free_attention(w, x, grid, heads, window, norm):
    b, n, width = x.shape
    d = width // heads
    q = split(linear(x, w, "att.mha.W_q"), heads) / d**0.25
    v = split(linear(x, w, "att.mha.W_v"), heads)
    image = q.reshape(b * heads, *grid, d).permute(0, 3, 1, 2)
    z = functional.conv2d(image, w["att.mha.attn.Qlandmark_op.weight"], stride=window)
    z = layer_norm(z.flatten(2).transpose(1, 2), w, "att.mha.attn.Qnorm_act.0")
    z = (z / 2 * (1 + torch.erf(z / math.sqrt(2)))).reshape(b, heads, -1, d)
    core, side = gaussian(z, z), gaussian(q, z)
    if norm:
        scale = core.sum(-1, keepdim=True) ** -0.5
        inverse = scale * coupled_inverse(core) * scale.mT
    else:
        inverse = implicit_inverse(core)
    out = (side @ inverse) @ (side.mT @ v)
    filters = w["att.mha.attn.conv.weight"]
    image = v.permute(0, 3, 1, 2).reshape(b * d, heads, *grid)
    filtered = functional.conv2d(image, filters, padding=filters.shape[-1] // 2, groups=heads)
    out = out + filtered.reshape(b, d, heads, n).permute(0, 2, 3, 1)
    return linear(out.transpose(1, 2).reshape(b, n, width), w, "att.mha.ff")


def gaussian(x, y):
    return torch.exp(-(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) / 2)


def implicit_inverse(a, ridge=0.01):
    """20 steps from alpha (A + ridge I), alpha of A alone; its differential is -Y dA Y."""
    with torch.no_grad():
        alpha = 0.9 * 2 / a.sum(-1).amax(-1) ** 2
        shifted = a + ridge * torch.eye(a.shape[-1], dtype=a.dtype)
        y = alpha[..., None, None] * shifted
        for _ in range(STEPS):
            y = 2 * y - y @ shifted @ y
    return y - y @ (a - a.detach()) @ y


def coupled_inverse(a):
    """20 steps without a ridge from one alpha for all matrices, differentiated step by step."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    alpha, halvings = 2 / a.sum(-1).max() ** 2, 0
    while (eye - alpha * a @ a).abs().sum(-2).max() > 1.01 and halvings < 10:
        alpha, halvings = alpha / 2, halvings + 1
    y = alpha * a
    for _ in range(STEPS):
        y = 2 * y - y @ a @ y
    return y


def softmax_block(w, x, heads):
    y = layer_norm(x, w, "norm1", 1e-6)
    q = split(linear(y, w, "attn.q"), heads)
    k, v = (split(z, heads) for z in linear(y, w, "attn.kv").chunk(2, -1))
    mixed = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
    x = x + linear(mixed.transpose(1, 2).flatten(2), w, "attn.proj")
    y = linear(layer_norm(x, w, "norm2", 1e-6), w, "mlp.fc1")
    return x + linear(y / 2 * (1 + torch.erf(y / math.sqrt(2))), w, "mlp.fc2")


def split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].mT + w[f"{name}.bias"]


def layer_norm(x, w, name, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return unit * w[f"{name}.weight"] + w[f"{name}.bias"]


def weights_under(state, prefix):
    return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
