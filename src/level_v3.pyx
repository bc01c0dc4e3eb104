"""The vector loops for level v3. setup.py chooses the compiler flags; the code is levels.pxi, the same for every level."""

cdef const char* LEVEL_NAME = "v3"

include "levels.pxi"
