"""One module per question; each has it as QUESTION."""
