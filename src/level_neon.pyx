"""The vector loops for level neon. setup.py chooses the compiler flags; the code is levels.pxi, the same for every level."""

cdef const char* LEVEL_NAME = "neon"

include "levels.pxi"
