"""What is read and what is kept: `dataset` makes rows of a split, `cache` keeps rows and log-probabilities,
`cached_files` lists and prunes them.
"""
