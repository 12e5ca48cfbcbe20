"""Runs the library's tests alone where MIGELIB_LIBRARY_ALONE is set."""

import os

from alone import forbid

if os.environ.get("MIGELIB_LIBRARY_ALONE"):
    forbid()
