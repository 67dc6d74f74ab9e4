"""Where everything lies: numbers and packed weights in a file, values in the workspace. Knows no functions."""
