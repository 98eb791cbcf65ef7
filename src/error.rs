//! Error families and exit codes.
