"""The comparison behind ``fastsock bench``: questions, contestants, and what they came to.

``results`` and ``question`` say what a question is and what its answer looks like; ``paired`` measures
contestants side by side; ``questions`` holds one module per question; ``native`` compiles the ones in C; ``html``
draws a report. Nothing of the library imports this package.
"""
