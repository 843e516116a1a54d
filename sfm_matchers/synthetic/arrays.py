"""Names for the arrays that the modules of this package exchange."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Colour = tuple[float, float, float]  # red, green, blue
