//! Sequences that once broke a promise, each with a sentence on how.
