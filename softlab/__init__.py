"""softlab: the laboratory for attention approximation."""

from typing import TYPE_CHECKING

from softlab import moved

if TYPE_CHECKING:
    from softlab.certificates import certify
    from softlab.core import Cost, Dims, Operator, Traits, as_matrix

__all__ = ["Cost", "Dims", "Operator", "Traits", "as_matrix", "certify"]
__version__ = "0.1.0"

moved.install()


def __getattr__(name: str) -> object:
    # On first use, so that figures and reports, which see tables only, start without torch.
    if name not in __all__:
        msg = f"module 'softlab' has no attribute {name!r}"
        raise AttributeError(msg)
    if name == "certify":
        from softlab.certificates import certify

        return certify
    from softlab import core

    return getattr(core, name)


def __dir__() -> list[str]:
    return sorted(__all__)
