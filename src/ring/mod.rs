//! Completions in, submissions out: descriptors and bytes, not HTTP.
