"""The compiled boundary of fastnn: it checks arguments, moves data in blocks, and calls the loops of the chosen level.

fastnn.activations, fastnn.normalization and fastnn.runtime publish what is defined here. Read src/README.md for the path
of a call, and the included files in this order.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from numpy cimport ndarray

import numpy as np

from fastnn import _checks

from kernels cimport *

cnp.import_array()

include "dispatch.pxi"
include "pipeline.pxi"
include "boundary.pxi"
include "activation_functions.pxi"
include "activation_row_functions.pxi"
include "activation_channel_functions.pxi"
include "normalization.pxi"
include "normalization_rows_groups.pxi"
include "preprocessing.pxi"
include "diagnostics.pxi"
