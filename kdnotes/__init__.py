"""Knowledge distillation of transformer encoders, in executable notebooks."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import methods
    from .experiments import run
    from .methods import distill, fine_tune
    from .tasks import load_task

__version__ = "0.1.0"

# The front door. Each name is imported from its module on first use, so that `import kdnotes` stays instant.
_HOME = {
    "distill": ".methods",
    "fine_tune": ".methods",
    "load_task": ".tasks",
    "methods": ".methods",
    "run": ".experiments",
}

__all__ = ["distill", "fine_tune", "load_task", "methods", "run"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'kdnotes' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = import_module(_HOME[name], __name__)
    return module if name == "methods" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
