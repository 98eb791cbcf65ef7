//! HTTP/1.1 without I/O: slices in, decisions out. No descriptor, no clock, no thread.
