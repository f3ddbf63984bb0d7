"""How a flow runs under Prefect: settings, retries, names; its front door is ``settings``."""
