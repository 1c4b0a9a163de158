"""The same training step in other libraries, each in its own environment.

The modules named after a library are programs that run inside that library's
environment; they import `protocol` and nothing else of this project.
"""
