"""Ways to look at a `Recording`: an offline page, a picture, a window, a server, and an index of all runs.

Nothing here is imported while an experiment computes: the page and the index are made when all is done.
"""
