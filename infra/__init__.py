"""How tracefleet is deployed: the bucket and its rights, and an S3 server for one machine.

Nothing of the pipeline imports this package, and the wheel doesn't hold it.
"""

HOST = "127.0.0.1"
