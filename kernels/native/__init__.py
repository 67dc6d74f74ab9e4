"""C sources that generated files include as text, and the script that makes the coefficients of their functions."""
