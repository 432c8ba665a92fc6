"""Jobs: many sequences at once, kept in Redis and in files until they are done, whatever dies meanwhile."""
