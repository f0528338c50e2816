"""Optional packages that only some models need: the extra `sd`."""

from importlib import import_module
from types import ModuleType

from bdia_exp.errors import UserError


def require(module: str) -> ModuleType:
    """The module (`diffusers`, `transformers`, `huggingface_hub`, `cv2`), imported now.

    Raises UserError, with the command to install it, if the import fails.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module} is needed here and cannot be imported ({error}): run pip install '.[sd]' in "
            "the folder of this project"
        ) from None
