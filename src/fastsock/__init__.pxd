# Makes src/fastsock a package to Cython, wherever the build runs from.
