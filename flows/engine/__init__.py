"""How a flow runs under Prefect: settings, retries, names, and steps as tasks."""
