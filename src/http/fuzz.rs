//! Entry points for fuzzing, kept beside the code: `fuzz/` calls them with what a fuzzer makes, and
//! the tests here with what a seed makes. They panic when a promise is broken.
