"""NVML's errors and what each means for sampling: the one place that knows their classes.

NEVER    this GPU, driver or user will not have it    None; said once, and asked for again every minute
LOST     the GPU is gone, or must be reset            left alone, and looked for by its UUID
GONE     the driver is gone, or is not the library's  GPUs are watched no more
others   may pass                                     None; counted, and asked for again after ever longer
"""

from typing import Any, Callable, Optional

import pynvml

NVML_ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)  # the second is not one of the first
NEVER = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_NoPermission,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLLibraryMismatchError,
)
LOST = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)
GONE = (pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_LibRmVersionMismatch)
UNREADABLE = (*NVML_ERRORS, UnicodeDecodeError)  # pynvml decodes every text


def call(name: str, *arguments: Any) -> Any:
    """A pynvml function by name: one that an old pynvml lacks is like one that the driver lacks."""
    function: Optional[Callable[..., Any]] = getattr(pynvml, name, None)
    if function is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    return function(*arguments)


def fact(name: str, *arguments: Any) -> Any:
    """What a pynvml function says, or None."""
    try:
        return call(name, *arguments)
    except UNREADABLE:
        return None


def is_due_to_be_said(count: int) -> bool:
    """Whether the count-th of many alike is worth an event: the 1st, 10th, 100th and so on."""
    return str(count).strip("0") == "1"
