"""Where numbers come from: text → token ids → rows → log-probabilities of responses.

To trust the numbers, read in this order: `encode` (text becomes token ids), `rows` (a prompt with its responses, each
computed once), `plan` (which rows go together), `batch` (rows as tensors), `attention` (who sees whom), `head` (logits
in tiles), `logprobs` (what all of it is for), `rewards`. Nothing here imports anything else of train.
"""
