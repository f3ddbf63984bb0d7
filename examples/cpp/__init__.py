"""The C++ consumer and how to build it."""
