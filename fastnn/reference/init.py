"""The initializers have no kernel: the reference is `fastnn.init` itself."""

from fastnn.init import *  # noqa: F403
from fastnn.init import __all__ as __all__
