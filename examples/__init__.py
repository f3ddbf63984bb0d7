"""Small programs that use what tracefleet makes."""
