"""What happens, in order: requests, the way through, and its Prefect flows."""
