"""Imported once by the process that workers are forked from: it knows no threads, and they start in milliseconds."""

import prefkit.publish
import prefkit.sources.pairs
import prefkit.sources.stack_exchange_dump
import prefkit.sources.stack_exchange_paired
import prefkit.tasks  # noqa: F401
from prefkit.no_pandas import forget_pandas

forget_pandas()
