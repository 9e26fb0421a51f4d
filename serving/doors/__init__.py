"""What clients talk to the server by: a protocol a file, over one set of models.

A door reads a message and asks for scores; it knows nothing of how they are made.
"""
