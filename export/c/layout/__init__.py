"""Where everything lies: numbers and packed weights in a generated file, values in the workspace. Knows no functions."""
