"""One file, one method of merging adapters."""
