"""The report of a conversion: one HTML page, and the same in markdown for Prefect's UI."""
