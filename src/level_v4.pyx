"""The vector loops for level v4. setup.py chooses the compiler flags; the code is levels.pxi, the same for every level."""

cdef const char* LEVEL_NAME = "v4"

include "levels.pxi"
