"""The vector loops for level baseline. setup.py chooses the compiler flags; the code is levels.pxi, the same for every level."""

cdef const char* LEVEL_NAME = "baseline"

include "levels.pxi"
