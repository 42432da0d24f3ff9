"""Human judgements in, validated preference shards out."""
