"""How tracefleet is deployed: pools, automations, job templates, the bucket, a local S3 server.

The pipeline doesn't import this package, and the wheel doesn't contain it.
"""

HOST = "127.0.0.1"
