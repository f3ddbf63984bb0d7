"""How each step of a conversion is done: plain functions, with a thin Prefect task at each foot."""
