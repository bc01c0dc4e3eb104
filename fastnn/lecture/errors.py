"""What the command reports in one line instead of a traceback."""


class LectureError(Exception):
    """Something that the person at the keyboard can put right; the message says how."""
