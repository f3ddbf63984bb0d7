"""Small programs that use published conversions."""
