"""Where everything lies in a generated file and in memory: numbers, packed weights, the workspace. Knows no C functions."""
