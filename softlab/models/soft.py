"""SOFT's vision transformers, from Tiny to Huge.

| | depths | widths | heads | parameters | multiply-adds at 224 pixels |
|---|---|---|---|---|---|
| Tiny | 1, 2, 3, 2 | 64, 128, 320, 512 | 2, 4, 10, 16 | 13 M | 1.9 G |
| Small | 1, 3, 7, 4; released 1, 3, 20, 4 | as Tiny | as Tiny | 24 M | 3.3 G |
| Medium | 1, 3, 29, 5 | 64, 128, 288, 512 | 2, 4, 9, 16 | 45 M | 7.2 G |
| Large | 1, 3, 40, 5 | as Tiny | as Tiny | 64 M | 11.0 G |
| Huge | 1, 5, 49, 5 | 64, 128, 352, 512 | 2, 4, 11, 16 | 87 M | 16.3 G |

The two last columns are the paper's; ``Pyramid.cost`` counts ours. Each function takes ``variant``,
``normalization`` and ``num_classes``; for anything else give its design to ``Pyramid``.
Sources: arXiv 2110.11945, Tables 1 and 3; fudan-zvg/SOFT, models/.
"""

from __future__ import annotations

from softlab.models.pyramid import Design, Pyramid

TINY = Design((1, 2, 3, 2))
SMALL = Design((1, 3, 7, 4))
SMALL_RELEASED = Design((1, 3, 20, 4))
MEDIUM = Design((1, 3, 29, 5), (64, 128, 288, 512), (2, 4, 9, 16))
LARGE = Design((1, 3, 40, 5))
HUGE = Design((1, 5, 49, 5), (64, 128, 352, 512), (2, 4, 11, 16))


def scaled(image: int) -> Design:
    """The pyramid in miniature, with the paper's ratios of tokens to landmarks.

    For images of ``image`` pixels, a multiple of 8. A stage has image^2, image^2 / 4, / 16 and / 64
    tokens and m = (image / 8)^2 landmarks, so that 64, 16, 4 and 1 tokens share one as they do in
    the paper's models at 224 pixels, where m is 49. 160 thousand parameters for ten classes.
    """
    return Design(
        (1, 1, 1, 1),
        widths=(16, 32, 48, 64),
        heads=(1, 1, 2, 2),
        strides=(1, 2, 2, 2),
        rank=(image // 8) ** 2,
        filters=(5, 3, 3),
        stem=8,
        image=image,
    )


def soft_tiny(
    variant: str = "paper", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Tiny, as a ``Pyramid``."""
    return Pyramid(TINY, variant, normalization, num_classes)


def soft_small(
    variant: str = "paper", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Small: 7 blocks in the third stage in the paper's variant, 20 in the released code's.

    ``soft_small_7`` and ``soft_small_20`` have the one or the other in either.
    """
    design = SMALL_RELEASED if variant == "released" else SMALL
    return Pyramid(design, variant, normalization, num_classes)


def soft_small_7(
    variant: str = "paper", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Small of the paper's depth, 24 M parameters."""
    return Pyramid(SMALL, variant, normalization, num_classes)


def soft_small_20(
    variant: str = "released", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Small of the released code's depth, 39 M parameters."""
    return Pyramid(SMALL_RELEASED, variant, normalization, num_classes)


def soft_medium(
    variant: str = "paper", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Medium, as a ``Pyramid``."""
    return Pyramid(MEDIUM, variant, normalization, num_classes)


def soft_large(
    variant: str = "paper", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Large, as a ``Pyramid``."""
    return Pyramid(LARGE, variant, normalization, num_classes)


def soft_huge(
    variant: str = "paper", normalization: str = "none", num_classes: int = 1000
) -> Pyramid:
    """SOFT-Huge, as a ``Pyramid``."""
    return Pyramid(HUGE, variant, normalization, num_classes)
