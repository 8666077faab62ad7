"""Knowledge distillation of transformer encoders, in executable notebooks."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import methods
    from .data.loading import folder_task, load_task
    from .data.tasks import register_task
    from .experiments.runs import run
    from .learning.general import general_student
    from .learning.registry import register_method
    from .methods import distill, fine_tune
    from .models.card import save_student
    from .models.encoders import load_tokenizer

__version__ = "0.2.0"

# The front door. Each name is imported from its module on first use, so that `import kdnotes` stays instant.
_HOME = {
    "distill": ".methods",
    "fine_tune": ".methods",
    "folder_task": ".data.loading",
    "general_student": ".learning.general",
    "load_task": ".data.loading",
    "load_tokenizer": ".models.encoders",
    "methods": ".methods",
    "register_method": ".learning.registry",
    "register_task": ".data.tasks",
    "run": ".experiments.runs",
    "save_student": ".models.card",
}

__all__ = [
    "distill",
    "fine_tune",
    "folder_task",
    "general_student",
    "load_task",
    "load_tokenizer",
    "methods",
    "register_method",
    "register_task",
    "run",
    "save_student",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'kdnotes' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = import_module(_HOME[name], __name__)
    return module if name == "methods" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
